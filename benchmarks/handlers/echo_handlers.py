"""Handlers that do nothing, so that what is measured is everything else."""


def echo(value: object) -> object:
    return value


async def async_echo(value: object) -> object:
    return value
