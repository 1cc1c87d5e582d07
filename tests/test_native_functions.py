"""Functions with a native body look to Python like the declarations that they stand for."""

import copy
import doctest
import gc
import inspect
import pickle
import pydoc
import sys
import types
import typing
import weakref

import numpy as np
import pytest

import onepass as op
from onepass import _capi, _core
from onepass.batchnorm import _passes, functional

PUBLIC = [thing for thing in vars(op).values() if isinstance(thing, _core.Function)]
PRIVATE = [
    thing
    for module in (_capi, functional, _passes)
    for thing in vars(module).values()
    if isinstance(thing, _core.Function) and thing not in PUBLIC
]
NATIVE = pytest.mark.parametrize("function", PUBLIC + PRIVATE, ids=lambda f: f.__name__)


def declaration(function) -> types.FunctionType:
    return inspect.unwrap(function)


def test_there_are_some():
    assert {op.batch_norm_train, op.batch_norm_infer} <= set(PUBLIC)


@NATIVE
def test_what_it_says_of_itself_is_the_declaration(function):
    declared = declaration(function)
    assert isinstance(declared, types.FunctionType)
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__"):
        assert getattr(function, name) == getattr(declared, name)
    assert inspect.signature(function) == inspect.signature(declared)
    assert typing.get_type_hints(function) == typing.get_type_hints(declared)
    assert inspect.getsource(function) == inspect.getsource(declared)
    assert repr(function) == f"<native function {function.__qualname__}>"
    assert inspect.isroutine(function)
    assert callable(function)


@NATIVE
def test_help_has_the_signature_and_the_docstring(function):
    text = pydoc.plain(pydoc.render_doc(function))
    signature = inspect.signature(function)
    shown = str(signature)
    if sys.version_info >= (3, 13):  # which breaks what is longer than a line
        shown = signature.format(max_width=80 - len(function.__name__))
    assert f"{function.__name__}{shown}" in text
    assert inspect.getdoc(function).splitlines()[0] in text


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__name__)
def test_its_examples_are_found_as_often_as_they_stand(function):
    module = sys.modules[function.__module__]
    found = [t for t in doctest.DocTestFinder().find(module) if t.name.endswith(function.__name__)]
    assert len(found) == 1
    assert len(found[0].examples) == function.__doc__.count(">>> ")


@NATIVE
def test_it_is_pickled_and_copied_by_name(function):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function
    assert copy.copy(function) is function
    assert copy.deepcopy(function) is function
    assert weakref.ref(function)() is function
    assert {function: 1}[function] == 1


@NATIVE
def test_nothing_of_it_can_be_changed(function):
    with pytest.raises(AttributeError):
        function.__doc__ = "other"
    with pytest.raises(AttributeError):
        function.unknown = 1
    with pytest.raises(AttributeError, match="unknown"):
        _ = function.unknown
    with pytest.raises(TypeError):
        type(function)()
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (type(function),), {})


# Arguments


def error_of(called, *args, **keywords):
    with pytest.raises(TypeError) as raised:
        called(*args, **keywords)
    return str(raised.value)


@NATIVE
def test_arguments_that_do_not_fit_are_refused_in_pythons_own_words(function):
    declared = declaration(function)
    parameters = inspect.signature(function).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    others = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    required = {p.name: None for p in parameters if p.default is p.empty}
    wrong = [
        ((), {}),
        ((None,) * (len(positional) + 1), {}),
        ((None,) * 40, {}),
        ((), {**required, "unknown": 1}),
        ((None,), required),  # the first one twice
        ((), {**required, "": 1}),
        *[((), {n: None for n in required if n != name}) for name in required],
        *[((None,) * len(positional), {**required, name: None}) for name in others[:1]],
    ]
    for args, keywords in wrong:
        try:
            inspect.signature(function).bind(*args, **keywords)
        except TypeError:
            assert error_of(function, *args, **keywords) == error_of(declared, *args, **keywords)
        else:
            pytest.fail(f"fits: {args}, {keywords}")


class Name(str):
    """A keyword that is equal to a parameter's name and not the same object, nor a plain string."""

    __slots__ = ()


def test_keywords_are_found_by_what_they_say():
    x, statistics = np.array([[1.0], [3.0]]), {"mean": np.ones(1), "var": np.ones(1)}
    expected = op.batch_norm_infer(x, **statistics, eps=1.0)
    reordered = {"eps": 1.0, "var": np.ones(1), "x": x, "mean": np.ones(1)}
    assert np.array_equal(op.batch_norm_infer(**reordered), expected)
    spelled = {"".join(list(name)): value for name, value in reordered.items()}
    assert np.array_equal(op.batch_norm_infer(**spelled), expected)
    derived = {Name(name): value for name, value in reordered.items()}
    assert np.array_equal(op.batch_norm_infer(**derived), expected)
    assert np.array_equal(op.batch_norm_infer.__call__(x, **statistics, eps=1.0), expected)


def test_in_a_class_it_is_a_method():
    class Batch(np.ndarray):
        normalized = op.batch_norm_infer

    x = np.array([[1.0], [3.0]])
    statistics = {"mean": np.ones(1), "var": np.ones(1)}
    found = x.view(Batch).normalized(**statistics)
    assert np.array_equal(found, op.batch_norm_infer(x, **statistics))
    assert Batch.normalized is op.batch_norm_infer


def test_a_call_keeps_no_reference():
    counted = np.ones((2, 1)), np.ones((2, 1)), np.ones(1)
    function, (x, out, one) = op.batch_norm_infer, counted
    before = [sys.getrefcount(thing) for thing in counted]
    for _ in range(10):
        function(x, mean=one, var=one, out=out)
        op.batch_norm_backward(x, out, saved_mean=one, saved_invstd=one, residual=x)
        error_of(function, x)
        error_of(function, x, mean=one, var=1)
        error_of(function, x, mean=one, var=one, eps="1")
    gc.collect()  # the errors' frames
    assert [sys.getrefcount(thing) for thing in counted] == before


# Declaring


def test_a_declaration_must_be_the_one_that_is_implemented():
    def batch_norm_infer(x, *, mean):
        """Other parameters."""

    def nothing_of_that_name():
        """No implementation."""

    with pytest.raises(ImportError, match="other parameters"):
        _core.native(declared_at_top(batch_norm_infer))
    with pytest.raises(ImportError, match="not implemented"):
        _core.native(nothing_of_that_name)
    with pytest.raises(ImportError, match="not implemented"):
        _core.native(len)


def declared_at_top(function):
    function.__qualname__ = function.__name__
    return function


def test_it_is_collected_with_what_it_refers_to():
    """Also where its declaration refers back to it."""
    declared = declared_at_top(
        types.FunctionType(
            declaration(_passes.layer_train).__code__, {"__name__": __name__}, "layer_train"
        )
    )
    native = _core.native(declared)
    declared.back = native
    gone = weakref.ref(native)
    assert gc.is_tracked(native)
    del native, declared
    gc.collect()
    assert gone() is None


def test_the_type_cannot_be_changed():
    # Python's interpreter caches where it found a method only if the method's type is immutable.
    with pytest.raises(TypeError, match="immutable type"):
        _core.Function.__call__ = None
