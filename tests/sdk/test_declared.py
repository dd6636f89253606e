"""Models inside a cold job: as pydantic's in everything, without pydantic where nothing needs it.

Each script runs as in a job and as elsewhere, where the classes are pydantic's from the start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = "import sys\nfrom pairio.sdk import BaseModel, Field, InputFile, OutputFile\n"


def _run(folder: Path, script: str, *, in_job: bool) -> str:
    path = folder / "main.py"
    path.write_text(script)
    environment = {k: v for k, v in os.environ.items() if k not in ("SPEC_OUTPUT_FILE",)}
    environment.pop("PAIRIO_JOB_FILE", None)
    if in_job:
        environment["PAIRIO_JOB_FILE"] = str(folder / "job.json")
    run = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


DECLARATIONS = """
from typing import List, Optional
class Group(BaseModel):
    "Some that belong together."
    sub: int = Field(description="a nested one", default=7)
class Base(BaseModel):
    text: str
    plain: float = 1.5
class Everything(Base):
    input: InputFile = Field(description="an input")
    parts: List[InputFile]
    output: OutputFile = Field(description="an output", json_schema_extra={"x": 1})
    names: List[str] = Field(default_factory=lambda: ["a"])
    maybe: Optional[int] = Field(default=None)
    perhaps: list[Group] | None = None
    group: Group
"""


def test_classes_that_only_declare_import_nothing(tmp_path: Path) -> None:
    script = HEAD + DECLARATIONS + "print('pydantic' in sys.modules, issubclass(Everything, Base))"
    assert _run(tmp_path, script, in_job=True) == "False True\n"
    assert _run(tmp_path, script, in_job=False) == "True True\n"


def test_a_warm_worker_imports_nothing_and_its_job_says_when_it_does(tmp_path: Path) -> None:
    script = (
        "import os, sys, types\nsys.modules['_pairio_warm'] = types.ModuleType('worker')\n"
        + HEAD
        + DECLARATIONS
        + f"os.environ['PAIRIO_JOB_FILE'] = {str(tmp_path / 'job.json')!r}\n"
        + f"print('pydantic' in sys.modules, os.listdir({str(tmp_path)!r}))\n"
        + f"print(Group().sub, sorted(os.listdir({str(tmp_path)!r})))"
    )
    seen = _run(tmp_path, script, in_job=False)
    assert seen == "False ['main.py']\n7 ['main.py', 'pydantic-was-imported']\n"


def test_a_job_of_the_first_app_imports_no_pydantic(tmp_path: Path) -> None:
    job: dict[str, object] = {"processor": "hello_world_1", "additional_outputs": ""}
    job |= {"inputs": [], "list_inputs": [], "outputs": []}
    job["parameters"] = [{"name": "name", "value": "you"}]
    (tmp_path / "job.json").write_text(json.dumps(job))
    main = ROOT / "apps" / "pairio_apps" / "hello_world" / "main.py"
    script = (
        f"import runpy, sys\nrunpy.run_path({str(main)!r}, run_name='__main__')\n"
        "print('pydantic' in sys.modules)"
    )
    assert _run(tmp_path, script, in_job=True) == "Hello, you!\nFalse\n"


def test_the_spec_is_made_by_pydantic_also_where_there_is_a_job_file(tmp_path: Path) -> None:
    script = "import os\nos.environ['SPEC_OUTPUT_FILE'] = 'x'\n" + HEAD
    script += "import pydantic; print(BaseModel is pydantic.BaseModel)"
    assert _run(tmp_path, script, in_job=True) == "True\n"


USES = {
    "a call": "print(repr(Group(sub=3)), Group().model_dump_json(), isinstance(Group(), Group))",
    "a wrong call": """
try:
    Group(sub='x')
except ValueError as error:
    print(error)
""",
    "a schema": "print(Group.model_json_schema(), Group.__doc__)",
    "fields": """
for name, field in Everything.model_fields.items():
    print(name, field)
print(Everything.__mro__)
""",
    "a missing attribute": "print(hasattr(Group, 'sub'), hasattr(Group, 'nothing'))",
    "pydantic's import by others": """
import pydantic
print(issubclass(Group, pydantic.BaseModel), BaseModel is pydantic.BaseModel)
print(Field is pydantic.Field, type(Group))
""",
    "a part of pydantic's import": """
from pydantic.fields import FieldInfo
print(isinstance(Group.model_fields['sub'], FieldInfo), Group().sub)
""",
    "a class with a method": """
class Area(Group):
    def twice(self):
        return 2 * self.sub
    def __init__(self, **named):
        super().__init__(**named)
print(Area(sub=4).twice(), issubclass(Area, Group), isinstance(Area(), Group))
""",
    "a class with a validator": """
from pydantic import field_validator
class Even(BaseModel):
    number: int = Field(default=2, ge=1)
    @field_validator('number')
    def is_even(cls, value):
        assert value % 2 == 0, 'odd'
        return value
print(Even().number, Even.model_json_schema())
try:
    Even(number=3)
except ValueError as error:
    print(error)
""",
    "a class with a configuration": """
class Strict(BaseModel):
    model_config = {'extra': 'forbid'}
    x: int = Field(default=1, alias='y')
class Frozen(BaseModel, frozen=True):
    x: int = 1
print(Strict(y=2), Frozen.model_config, Strict.model_json_schema())
""",
    "fields in types": """
from typing import Annotated
class Narrow(BaseModel):
    short: Annotated[str, Field(max_length=3)] = 'a'
    several: list[Annotated[int, Field(gt=0)]] | None = None
    pair: Optional[Annotated[int, Field(gt=0)]] = None
Alias = Annotated[int, Field(gt=5)]
class Narrower(Narrow):
    x: Alias = 6
    with_groups: list[Group] = Field(default_factory=list)
print(Narrower.model_json_schema())
print(Narrower(with_groups=[Group()], several=[1]))
""",
    "bases of other kinds": """
import abc, typing
T = typing.TypeVar('T')
class Box(BaseModel, typing.Generic[T]):
    what: T
class Abstract(BaseModel, abc.ABC):
    @abc.abstractmethod
    def f(self): ...
print(Box[int](what='3'), Box[Group](what={}))
try:
    Abstract()
except TypeError as error:
    print(error)
""",
    "private and odd members": """
import enum, typing
class Color(enum.Enum):
    red = 1
class Odd(BaseModel):
    _hidden: int = 3
    color: Color = Color.red
    count: typing.ClassVar[int] = 5
print(Odd(), Odd()._hidden, Odd.count)
try:
    class Wrong(BaseModel):
        x = 5
except Exception as error:
    print(type(error))
""",
    "classes in functions": """
def make():
    class Inner(BaseModel):
        x: int = Field(default=3)
    return Inner
print(make()(), make().__qualname__)
""",
    "a pickle": """
import pickle
kept = {'model': Group}
print(pickle.loads(pickle.dumps(Group(sub=9))), kept['model'](sub=1))
print(isinstance(Group(), kept['model']), issubclass(Everything, kept['model']))
""",
    "an adapter": """
models = [list[Group]]
from pydantic import TypeAdapter
print(TypeAdapter(models[0]).validate_python([{'sub': 5}]))
print(TypeAdapter(list[Group]).json_schema())
""",
}


@pytest.mark.parametrize("name", USES)
def test_a_model_that_is_used_is_pydantics(tmp_path: Path, name: str) -> None:
    script = HEAD + DECLARATIONS + USES[name]
    seen = _run(tmp_path, script, in_job=True)
    assert seen == _run(tmp_path, script, in_job=False)
    assert seen.strip()


POSTPONED = """
from __future__ import annotations
import sys
from pairio.sdk import BaseModel, Field
class Leaf(BaseModel):
    up: Tree | None = None
    near: list[Leaf] = Field(default_factory=list, description="others")
class Tree(BaseModel):
    leaves: list[Leaf] = []
assert ('pydantic' in sys.modules) == ('PAIRIO_JOB_FILE' not in __import__('os').environ)
print(Tree(leaves=[{'up': {}, 'near': [{}]}]), Leaf.model_json_schema())
"""


def test_classes_that_name_one_another_are_pydantics(tmp_path: Path) -> None:
    seen = _run(tmp_path, POSTPONED, in_job=True)
    assert seen == _run(tmp_path, POSTPONED, in_job=False)


def test_models_of_other_modules_become_pydantics_everywhere(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(HEAD + DECLARATIONS)
    script = (
        "import models\nfrom models import Group as G\nfrom pairio.sdk import BaseModel as B\n"
        "print(models.Everything.model_fields['group'].annotation is G)\n"
        "import pydantic\n"
        "print(G is models.Group, issubclass(G, pydantic.BaseModel), B is pydantic.BaseModel)"
    )
    assert _run(tmp_path, script, in_job=True) == "True\nTrue True True\n"


def test_an_app_without_pydantic_runs_until_it_needs_it(tmp_path: Path) -> None:
    script = (
        "import sys\nsys.modules['pydantic'] = None\n"
        "from pairio.sdk import BaseModel, Field\nprint('no')"
    )
    with pytest.raises(AssertionError, match="pydantic"):
        _run(tmp_path, script, in_job=False)
    script = (
        "import sys\nfrom pairio.sdk import BaseModel, Field\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pydantic': raise ModuleNotFoundError('no pydantic')\n"
        "sys.meta_path.insert(1, Blocked())\n"
        "class Model(BaseModel):\n    x: int = Field(default=1)\n"
        "try:\n    Model()\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert _run(tmp_path, script, in_job=True) == "no pydantic\n"
