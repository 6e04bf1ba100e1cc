"""Command lines as the real tools take them: what is not listed is refused.

The lists are those of the tools' public references:
  https://cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources
  https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm
  https://kubernetes.io/docs/reference/kubectl/generated/
  https://docs.docker.com/reference/cli/docker/
"""

import sys
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """A command: its flags by "name" (a switch) or "name=" (takes a value)."""

    flags: str
    positional: tuple[int, int]  # at least and at most so many
    required: str = ""


class Given(NamedTuple):
    verb: str
    arguments: list[str]
    flags: dict[str, list[str]]

    def one(self, name: str, default: str = "") -> str:
        return self.flags[name][-1] if name in self.flags else default


# gcloud-wide flags, of which every command may have any.
_EVERYWHERE = "project= quiet format= verbosity= account="
_SSH = (
    "worker= zone= dry-run force-key-file-overwrite internal-ip plain ssh-key-file= "
    "strict-host-key-checking= ssh-key-expiration= ssh-key-expire-after="
)

GCLOUD = {
    "queued-resources create": Command(
        "zone= runtime-version= accelerator-type= topology= type= node-id= node-count= "
        "node-prefix= async boot-disk= data-disk= description= guaranteed internal-ips "
        "labels= metadata= metadata-from-file= network= range= reserved scopes= "
        "service-account= shielded-secure-boot spot subnetwork= tags= "
        "valid-after-duration= valid-after-time= valid-until-duration= "
        "valid-until-time= " + _EVERYWHERE,
        (1, 1),
        "zone runtime-version",
    ),
    "queued-resources describe": Command("zone= " + _EVERYWHERE, (1, 1), "zone"),
    "queued-resources delete": Command(
        "zone= async force " + _EVERYWHERE, (1, 1), "zone"
    ),
    "tpu-vm describe": Command("zone= " + _EVERYWHERE, (1, 1), "zone"),
    "tpu-vm ssh": Command(
        f"command= output-directory= ssh-flag= {_SSH} {_EVERYWHERE}", (1, 1), "zone"
    ),
    "tpu-vm scp": Command(
        f"compress recurse scp-flag= {_SSH} {_EVERYWHERE}", (2, 99), "zone"
    ),
}

KUBECTL = {
    "apply": Command(
        "filename= validate= namespace= output= server-side dry-run= wait force", (0, 0)
    ),
    "create secret generic": Command(
        "namespace= from-file= from-literal= from-env-file= type= output= dry-run= "
        "append-hash save-config validate=",
        (1, 1),
    ),
    "patch": Command(
        "namespace= filename= patch= patch-file= type= subresource= output= dry-run=",
        (1, 2),
        "patch",
    ),
    "get": Command(
        "namespace= output= selector= ignore-not-found watch all-namespaces", (1, 99)
    ),
    "delete": Command(
        "namespace= filename= selector= ignore-not-found wait= force grace-period= now",
        (0, 99),
    ),
    "logs": Command(
        "namespace= follow previous container= selector= tail= since= since-time= "
        "prefix timestamps max-log-requests= ignore-errors all-containers "
        "pod-running-timeout= limit-bytes=",
        (0, 2),
    ),
}

DOCKER = {
    "build": Command(
        "tag= build-arg= file= label= no-cache platform= pull push quiet target=",
        (1, 1),
    ),
    "push": Command("all-tags platform= quiet disable-content-trust", (1, 1)),
}


def parse(tool: str, commands: dict[str, Command], argv: list[str]) -> Given:
    """Reads a command line; ends the process with 2 if the tool would not take it."""
    words = [a for a in argv if not a.startswith("-")]
    verb = next((v for v in commands if words[: len(v.split())] == v.split()), None)
    if verb is None:
        refuse(f"{tool}: invalid choice: {' '.join(words[:2])!r}")
    command = commands[verb]
    known = {f.rstrip("="): f.endswith("=") for f in command.flags.split()}
    given: dict[str, list[str]] = {}
    for text in (a for a in argv if a.startswith("-")):
        name, equals, value = text.removeprefix("--").partition("=")
        if not text.startswith("--") or name not in known:
            refuse(f"{tool} {verb}: unrecognized arguments: {text}")
        if bool(equals) and not known[name]:
            refuse(f"{tool} {verb}: {text}: ignored explicit argument")
        if not equals and known[name]:
            refuse(f"{tool} {verb}: {text}: expected one argument")
        given.setdefault(name, []).append(value)
    if missing := [f for f in command.required.split() if f not in given]:
        refuse(f"{tool} {verb}: must be specified: {missing}")
    arguments = words[len(verb.split()) :]
    if not command.positional[0] <= len(arguments) <= command.positional[1]:
        refuse(f"{tool} {verb}: unrecognized or missing arguments: {arguments}")
    return Given(verb, arguments, given)


def refuse(message: str) -> NoReturn:
    print(f"ERROR: {message}", file=sys.stderr)
    sys.exit(2)
