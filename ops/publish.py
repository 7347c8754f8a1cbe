"""Publishing: a commit and a tag in the data registry, never in the code's repository."""

import dagster as dg

from xdub_platform.chain import ACT, KIND_TAG
from xdub_platform.failures import input_error_fails_the_run
from xdub_platform.platform import Platform


class PublishConfig(dg.Config):
    """What the registry's commit is called."""

    tag: str
    message: str = ""


@dg.op
def publish_registry(context: dg.OpExecutionContext, config: PublishConfig, platform: Platform) -> str:
    """Commits and tags every dataset, model and gate verdict that the registry holds now; pushes to a remote."""
    with input_error_fails_the_run():
        commit = platform.store.publish(config.tag, config.message or f"Published as {config.tag}")
    context.log.info(f"published as {config.tag}: commit {commit}")
    context.add_output_metadata({"tag": config.tag, "commit": commit})
    return commit


@dg.job(tags={KIND_TAG: ACT})
def publish() -> None:
    """Publishes the data registry under a tag, and pushes it to a remote from which it can be restored."""
    publish_registry()
