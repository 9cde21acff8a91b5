"""Settings as values: frozen dataclasses to and from JSON, and single fields set from text.

The constructor is the schema. A field whose metadata names a registry holds one of several dataclasses; in JSON it
carries its name as "kind". A class outside the registry goes by `package.module:Class`.
"""

import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from raygrad.errors import BadInput
from raygrad.naming import load_attribute, unknown

T = TypeVar("T")
Registry = Mapping[str, type]

INNER = "inner"
"""A part with a field of this name is around another one: fields that it lacks are those of the part inside."""


def one_of(registry: Registry, default: Any = MISSING) -> Any:
    """A dataclass field that holds an instance of one of the registry's classes."""
    return field(default=default, metadata={"registry": registry})


def kind_of(value: object, registry: Registry) -> str:
    """The name under which `value`'s class is registered, or `package.module:Class`."""
    for name, cls in registry.items():
        if type(value) is cls:
            return name
    return f"{type(value).__module__}:{type(value).__qualname__}"


def class_of(kind: str, registry: Registry, path: str) -> type:
    """The class behind a kind. Raises BadInput with the nearest name."""
    if ":" in kind:
        cls = load_attribute(kind, path)
        if not (isinstance(cls, type) and is_dataclass(cls)):
            raise BadInput(f"{path} {kind!r} is not a dataclass")
        return cls
    if kind not in registry:
        raise unknown(path, kind, registry)
    return registry[kind]


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def dump(value: Any, registry: Registry | None = None) -> Any:
    """`value` as JSON: dataclasses become objects, tuples lists, and a whole number in a float's field a float."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = {} if registry is None else {"kind": kind_of(value, registry)}
        hints = _hints(type(value))
        plain = {f.name: dump(getattr(value, f.name), f.metadata.get("registry")) for f in fields(value)}
        return kind | {n: float(v) if type(v) is int and _is_float(hints[n]) else v for n, v in plain.items()}
    if isinstance(value, tuple | list):
        return [dump(v) for v in value]
    return value


def _is_float(hint: Any) -> bool:
    """Whether a number in a field of this type is a float."""
    return hint is float or (get_origin(hint) in (Union, types.UnionType) and float in get_args(hint))


def load(cls: type[T], data: Any, path: str = "") -> T:
    """An instance of the dataclass `cls` from JSON. Raises BadInput naming the field."""
    if not isinstance(data, Mapping):
        raise BadInput(f"{path or cls.__name__} is {data!r}; it must be an object with fields")
    known = {f.name: f for f in fields(cls)}  # pyright: ignore[reportArgumentType]
    values = {}
    for name, value in data.items():
        here = f"{path}.{name}" if path else name
        if name not in known:
            raise unknown(f"field of {path or 'the experiment'}", name, known)
        values[name] = _load_field(cls, known[name], value, here)
    try:
        return cls(**values)
    except TypeError as e:
        raise BadInput(f"{path or cls.__name__}: {e}") from e


def _load_field(owner: type, f: Field[Any], value: Any, path: str) -> Any:
    registry = f.metadata.get("registry")
    if registry is None:
        return convert(_hints(owner)[f.name], value, path)
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise BadInput(f"{path} is {value!r}; it must be an object with a kind")
    cls = class_of(value["kind"], registry, path)
    return load(cls, {k: v for k, v in value.items() if k != "kind"}, path)


def convert(hint: Any, value: Any, path: str) -> Any:
    """`value` (text from a command line, or JSON) as the type `hint`. Raises BadInput naming the field."""
    try:
        return _convert(hint, value, path)
    except (ValueError, TypeError) as e:
        raise BadInput(f"{path} is {value!r}; it must be {_name(hint)}") from e


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if type(None) in args and (value is None or value in ("none", "null")):
            return None
        for option in args:
            if option is not type(None):
                try:
                    return _convert(option, value, path)
                except (ValueError, TypeError):
                    continue
        raise ValueError(value)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(value)
    if origin is tuple:
        parts = [p for p in value.strip("()[] ").split(",") if p.strip()] if isinstance(value, str) else list(value)
        return tuple(_convert(args[0], p.strip() if isinstance(p, str) else p, path) for p in parts)
    if origin is dict or hint is dict:
        loaded = json.loads(value) if isinstance(value, str) else value
        if not isinstance(loaded, dict):
            raise ValueError(value)
        return loaded
    if is_dataclass(hint):
        return load(hint, value, path)  # pyright: ignore[reportArgumentType]
    if hint is bool:
        named = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
        return (
            value if isinstance(value, bool) else named[str(value).lower()] if str(value).lower() in named else _fail()
        )
    if isinstance(value, bool):
        raise ValueError(value)
    if hint is int:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(value)
        return int(value)
    if hint is float:
        number = float(value)
        if not isfinite(number):
            raise ValueError(value)
        return number
    if hint is str:
        return value if isinstance(value, str) else _fail()
    return value


def _fail() -> Any:
    raise ValueError


def _name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list of which each is {_name(args[0])}"
    return {
        int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "none",
        dict: "a JSON object",
    }.get(hint, str(hint))  # fmt: skip


def names(part: Any) -> set[str]:
    """The names of a part's fields, and of those of the part inside."""
    own = {f.name for f in fields(part)}
    return own | names(getattr(part, INNER)) if INNER in own else own


def assign(value: T, path: str, text: str) -> T:
    """`value` with the field at the dotted `path` set from text; see `assign_all`."""
    return assign_all(value, [(path, text)])


def assign_all(value: T, settings: Iterable[tuple[str, str]]) -> T:
    """`value` with fields set from text, in order, by their dotted paths. Raises BadInput with the nearest field name.

    Setting a part that has kinds ("algorithm=scaffold") keeps the fields that both kinds have. Where a part is around
    another one, "algorithm.lr" is that of the one inside, unless it has one itself. A part is made, and
    checked, when everything is set: so fields that depend on each other may come in any order.
    """
    draft = _Draft.of(value)
    for path, text in settings:
        draft.set(path, text, "")
    return draft.build("")


@dataclass
class _Draft:
    """A dataclass instance while its fields are being set: they are checked when it is built."""

    cls: type
    values: dict[str, Any]
    kind: str = ""
    former: dict[str, Any] = field(default_factory=dict)  # values of kinds before, which another kind may take up

    @staticmethod
    def of(value: Any) -> "_Draft":
        return _Draft(type(value), {f.name: getattr(value, f.name) for f in fields(value)})

    def set(self, path: str, text: str, root: str) -> None:
        name, _, rest = path.partition(".")
        known = {f.name: f for f in fields(self.cls)}
        here = f"{root}.{name}" if root else name
        if name not in known and INNER in known:  # what it lacks is a field of the part inside
            self.set(f"{INNER}.{path}", text, root)
            return
        if name not in known:
            raise unknown(f"field of {f'{root} ({self.cls.__name__})' if root else 'the experiment'}", name, known)
        current = self._part(name)
        registry = known[name].metadata.get("registry")
        if rest:
            if not isinstance(current, _Draft):
                raise BadInput(f"{here} has no fields, so {here}.{rest} cannot be set")
            current.set(rest, text, here)
        elif registry is not None:
            cls = class_of(text, registry, here)
            if not (isinstance(current, _Draft) and current.cls is cls):
                self.values[name] = _Draft(cls, {}, text).keeping(current)
        elif isinstance(current, _Draft):
            names = ", ".join(f"{here}.{f.name}" for f in fields(current.cls))
            raise BadInput(f"{here} has fields; set one of them: {names}")
        else:
            self.values[name] = convert(_hints(self.cls)[name], text, here)

    def _part(self, name: str) -> Any:
        """The value of a field, as a draft if it has fields itself."""
        default = next(f.default for f in fields(self.cls) if f.name == name)
        current = self.values.get(name, default if is_dataclass(default) else None)
        if is_dataclass(current) and not isinstance(current, _Draft):
            current = self.values[name] = _Draft.of(current)
        return current

    def keeping(self, former: Any) -> "_Draft":
        """With the values of the fields that `former` has as well, or a part inside of either."""
        kept = {**former.former, **former.flat()} if isinstance(former, _Draft) else {}
        names = {f.name for f in fields(self.cls)}
        self.values |= {n: v for n, v in kept.items() if n in names}
        self.former = kept
        if INNER in names:
            inside = self._part(INNER)
            inside.former = kept
            inside.values |= {
                f.name: kept[f.name] for f in fields(inside.cls) if f.name in kept and f.name not in names
            }
        return self

    def flat(self) -> dict[str, Any]:
        """The values of its fields and of those of the part inside."""
        inside = self._part(INNER).flat() if INNER in {f.name for f in fields(self.cls)} else {}
        return inside | {n: v for n, v in self.values.items() if n != INNER}

    def build(self, path: str) -> Any:
        made = {
            n: v.build(f"{path}.{n}" if path else n) if isinstance(v, _Draft) else v for n, v in self.values.items()
        }
        lacking = [
            f.name for f in fields(self.cls)
            if f.name not in made and f.default is MISSING and f.default_factory is MISSING
        ]  # fmt: skip
        if lacking:
            also = ", ".join(f"{path}.{n}" for n in lacking)
            raise BadInput(f"{path} {self.kind or self.cls.__name__} needs more: set {also} too")
        return self.cls(**made)


def canonical(data: Any) -> bytes:
    """JSON with one spelling, for hashing."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
