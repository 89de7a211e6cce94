"""Manifests of an App: what it takes to run each role in a container of its own, for Compose and for Kubernetes.

    plan = plan_of(app="app:app", actors=…, settings=…, image="registry/acme:1.0")
    compose.render(plan)        {"compose.yaml": …, "Dockerfile": …}
    kubernetes.render(plan, …)  {"10-config.yaml": …, "20-migration.yaml": …, …}

Nothing here reads the environment or writes files: the same plan gives the same bytes. URLs are never in what is
rendered: they are secrets, which manifests refer to by name.
"""
