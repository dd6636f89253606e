"""What the ops of a change do, in plain words: for proposals and for the log of a service."""

from typing import Any

from pairio_protocol.allowlist import Folded

__all__ = ["op_words"]


def op_words(op: dict[str, Any], before: Folded | None = None) -> str:
    """Return what an op does. `before` is the list before it; it names the members of keys."""

    def who(peer: Any) -> str:
        member = before.member_of(str(peer)) if before is not None else None
        return f"{member} ({str(peer)[-10:]})" if member else str(peer)

    member, roles = op.get("member"), ", ".join(op.get("roles") or ())
    match op.get("op"):
        case "create":
            return f"creates the service {op.get('name')!r}{_admins(op, who)}"
        case "invite":
            return f"invites {op.get('uses')} by link, roles: {roles}; key {op.get('key')}"
        case "uninvite":
            return f"withdraws the invitation {op.get('key')}"
        case "add" if "invitation" in op:
            token = (op["invitation"] or {}).get("key")
            return (
                f"{member!r} joins by the invitation {token} with {op.get('key')}, roles: {roles}"
            )
        case "add" if "device" in op:
            by = who((op["device"] or {}).get("by"))
            return f"{member!r} links a further device {op.get('key')}, by {by}"
        case "add":
            known = before is not None and member in before.members
            verb = "gives member" if known else "adds member"
            return f"{verb} {member!r} the key {op.get('key')}, roles: {roles}"
        case "role":
            return f"sets the roles of {member!r}: {roles}"
        case "remove" if "leave" in op:
            return f"{member!r} leaves with the key {op.get('key')}"
        case "remove":
            key = f"the key {op['key']} of " if "key" in op else ""
            return f"removes {key}{member!r}"
        case "rename":
            return f"renames {member!r} to {op.get('to')!r}"
        case "admins":
            return f"sets the admins{_admins(op, who)}"
        case "app":
            app = op.get("app") or {}
            verb = "updates" if before is not None and app.get("name") in before.apps else "adds"
            return f"{verb} the app {app.get('name')!r}, bundle {app.get('bundle')}"
        case "app_remove":
            return f"removes the app {op.get('app')!r}"
        case "policy":
            said = ", ".join(f"{k} = {v}" for k, v in sorted((op.get("policy") or {}).items()))
            same = before is not None and op.get("policy") == before.policy
            return "leaves the policy as it is" if same else f"sets the policy: {said or 'none'}"
        case "end":
            return "ends the service"
    return f"{op.get('op')}: " + ", ".join(f"{k} = {v}" for k, v in sorted(op.items()) if k != "op")


def _admins(op: dict[str, Any], who: Any) -> str:
    names = ", ".join(map(who, op.get("admins") or ()))
    return f": {names}; {op.get('threshold')} of them sign"
