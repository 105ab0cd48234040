"""The Role and RoleBinding that discovery needs, as YAML to apply. Pure text; shared by error messages and the CLI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Name of the Role and RoleBinding; one per namespace that is read.
ROLE_NAME = "meshlib-discovery"

#: API groups and resources, for ``list`` and ``watch`` (``get`` is not used). ``endpoints`` serves clusters without
#: EndpointSlices, and is asked for only then.
SLICES = ("discovery.k8s.io", "endpointslices")
SERVICES = ("", "services")
ENDPOINTS = ("", "endpoints")

_NAME = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_ACCOUNT = re.compile(rf"system:serviceaccount:({_NAME}):({_NAME})")
_USER = re.compile(r'User "([^"\n]{1,253})" cannot')
_SAFE_USER = re.compile(r"[A-Za-z0-9@._:/-]{1,253}")


@dataclass(frozen=True, slots=True)
class Subject:
    """Who gets the permissions: a ServiceAccount (``namespace`` and ``name``), or a User (``namespace`` empty)."""

    namespace: str
    name: str

    @classmethod
    def from_user_name(cls, user: str) -> Subject | None:
        """From the API server's name of a user; None when it cannot be put into YAML safely."""
        account = _ACCOUNT.fullmatch(user)
        if account is not None:
            return cls(account[1], account[2])
        return cls("", user) if _SAFE_USER.fullmatch(user) else None

    @classmethod
    def from_forbidden_message(cls, message: str) -> Subject | None:
        """From the text of a 403 (``... User "system:serviceaccount:NS:NAME" cannot list ...``)."""
        user = _USER.search(message)
        return cls.from_user_name(user[1]) if user is not None else None


#: Who a request without credentials comes from.
ANONYMOUS = Subject("", "system:anonymous")


def _rules(resources: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f'- apiGroups: ["{group}"]\n  resources: ["{resource}"]\n  verbs: ["list", "watch"]\n'
        for group, resource in resources
    )


def role_yaml(
    namespace: str, subject: Subject | None, resources: Sequence[tuple[str, str]] = (SLICES, SERVICES)
) -> str:
    """A Role for ``namespace`` (where the Services are) and its binding to ``subject``, for ``kubectl apply -f -``.

    RBAC cannot restrict by label, and slices have generated names, so the whole namespace is readable. With ``subject``
    None the place to fill in is marked.
    """
    # Names are quoted: a namespace may be called 123, true or null, which YAML would read as another type.
    if subject is None:
        who = (
            "- kind: ServiceAccount\n  name: NAME-OF-THE-SERVICE-ACCOUNT\n  namespace: NAMESPACE-OF-THE-POD\n"
        )
        suffix = ""
    elif subject.namespace:
        who = f'- kind: ServiceAccount\n  name: "{subject.name}"\n  namespace: "{subject.namespace}"\n'
        suffix = f"-{subject.namespace}-{subject.name}"
    else:
        who = f'- kind: User\n  apiGroup: rbac.authorization.k8s.io\n  name: "{subject.name}"\n'
        suffix = "-" + re.sub(r"[^a-z0-9-]", "-", subject.name.lower()).strip("-")
    binding = (ROLE_NAME + suffix)[:253].rstrip("-.")
    return (
        "apiVersion: rbac.authorization.k8s.io/v1\n"
        "kind: Role\n"
        f'metadata:\n  name: {ROLE_NAME}\n  namespace: "{namespace}"\n'
        f"rules:\n{_rules(resources)}"
        "---\n"
        "apiVersion: rbac.authorization.k8s.io/v1\n"
        "kind: RoleBinding\n"
        f'metadata:\n  name: {binding}\n  namespace: "{namespace}"\n'
        "roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: Role\n"
        f"  name: {ROLE_NAME}\n"
        f"subjects:\n{who}"
    )
