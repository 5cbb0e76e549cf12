# SPDX-License-Identifier: MIT
"""What pyggmlq does around the CUDA kernels, tested without a GPU: finding the library, saying why it can't be used, copying to a
device and back, device arrays and their checks, memory. The kernels themselves: test_cuda.py."""
from __future__ import annotations

import importlib
import inspect
import sys

import device_arrays
import fake_cuda
import numpy as np
import pytest
import test_api
import test_attention
import test_vectors

import pyggmlq
from pyggmlq import CudaArray

pytest_plugins = ["pytester"]


@pytest.fixture
def library():
    with fake_cuda.installed() as installed:
        yield installed
        assert not installed.memory  # every byte was freed, without a garbage collection


def cuda():
    (found,) = [backend for backend in pyggmlq.backends() if backend.name == "cuda"]
    return found


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# --- whether it can be used, and why not -----------------------------------------------------------------------------------


def test_without_the_library(monkeypatch):
    fake_cuda._forget()
    for name in ("cuda", "hip"):
        monkeypatch.setitem(sys.modules, f"pyggmlq._ggmlq_{name}", None)
    assert not cuda().usable and cuda().reason == (
        "This installation was built without CUDA: reinstall from the sources with -C cmake.define.PYGGMLQ_CUDA=ON, which needs nvcc."
    )
    with pytest.raises(ValueError, match="backend 'cuda' is not usable: This installation was built without CUDA"):
        pyggmlq.quantize(normal(32), backend="cuda")
    with pytest.raises(ValueError, match="backend 'cuda' is not usable: This installation was built without CUDA"):
        CudaArray.upload(normal(32))
    monkeypatch.undo()
    fake_cuda._forget()


@pytest.mark.parametrize("options, reason", [
    (dict(library=OSError("libwhatever.so.1: cannot open shared object file")),
     "The CUDA library can't be loaded: libwhatever.so.1: cannot open shared object file."),
    (dict(driver=0, devices=0, says={"device_count": -1035}), "Found no NVIDIA driver: fake error -1035."),
    (dict(driver=0, devices=0), "Found no NVIDIA driver: its version is unknown."),
    (dict(driver=11080, devices=0, says={"device_count": -1035}),
     "The NVIDIA driver can't be used: fake error -1035 (it serves CUDA up to 11.8, this installation was built with 13.0)."),
    (dict(devices=0), "The NVIDIA driver can't be used: it lists no device (it serves CUDA up to 13.0, this installation was built with 13.0)."),
    (dict(says={"device_probe": -1209}),
     "The CUDA library holds no code for Fake 0 (compute capability 9.0): fake error -1209. Reinstall on this machine with "
     "-C cmake.define.PYGGMLQ_CUDA=ON."),
])  # fmt: skip
def test_a_library_that_cannot_be_used(options, reason):
    with fake_cuda.installed(**options):
        assert (cuda().usable, cuda().reason, cuda().device) == (False, reason, "")
        assert [b.name for b in pyggmlq.backends() if b.usable] == ["reference", "cpu"]
        with pytest.raises(ValueError) as caught:
            pyggmlq.quantize(normal(32), backend="cuda")
        assert str(caught.value) == f"backend 'cuda' is not usable: {reason}"


def test_hip_is_the_same_under_another_name():
    reason = "This installation was built without HIP: reinstall from the sources with -C cmake.define.PYGGMLQ_HIP=ON, which needs ROCm."
    with fake_cuda.installed():
        assert [(b.usable, b.reason) for b in pyggmlq.backends() if b.name == "hip"] == [(False, reason)]
        with pytest.raises(ValueError, match="backend 'hip' is not usable: This installation was built without HIP"):
            pyggmlq.quantize(normal(32), backend="hip")
    x = normal(3, 128)
    with fake_cuda.installed(platform="hip") as library:
        found = {b.name: b for b in pyggmlq.backends()}
        assert (found["hip"].usable, found["hip"].device) == (True, "Fake 0")
        assert found["cuda"].reason.startswith("This installation was built without CUDA")
        assert np.array_equal(pyggmlq.quantize(x, backend="hip"), pyggmlq.quantize(x))
        result = pyggmlq.quantize(CudaArray.upload(x), backend="hip")
        assert isinstance(result, CudaArray) and np.array_equal(result.numpy(), pyggmlq.quantize(x))
        library.says["allocate"] = -1002
        with pytest.raises(RuntimeError, match="^HIP: allocating 168 bytes failed: fake error -1002$"):
            pyggmlq.quantize(x, backend="hip")
    with fake_cuda.installed(platform="hip", driver=60_342_134, devices=0):
        (hip,) = [b for b in pyggmlq.backends() if b.name == "hip"]
        assert hip.reason == (
            "The AMD driver can't be used: it lists no device (it serves HIP up to 6.3, this installation was built with 0.0)."
        )


def test_the_device_is_named(library):
    assert cuda() == pyggmlq.Backend("cuda", True, "", device="Fake 0 (compute capability 9.0)")


def test_it_has_the_functions_of_the_others(library):
    modules = [importlib.import_module(f"pyggmlq.{name}") for name in ("_cuda", "_cpu")]
    for name in (*device_arrays.FUNCTIONS, "find_not_finite"):
        found, wanted = (list(inspect.signature(getattr(module, name)).parameters) for module in modules)
        assert found == wanted, name


def test_limits_are_those_of_the_header(library):
    from pyggmlq import _cuda_array

    assert _cuda_array._MAX_AXES == library.GGMLQ_CUDA_MAX_AXES


def test_the_driver_speaks(library):
    library.says["allocate"] = -1002
    with pytest.raises(RuntimeError, match="^CUDA: allocating 14 bytes failed: fake error -1002$"):
        pyggmlq.quantize(normal(32), backend="cuda")
    del library.says["allocate"]
    library.says["synchronize"] = -1700
    with pytest.raises(RuntimeError, match="^CUDA: running a kernel failed: fake error -1700$"):
        pyggmlq.quantize(CudaArray.upload(normal(32)), backend="cuda")


def test_a_shape_without_a_kernel(library):
    library.says["attend_check"] = -5
    q, k, v = test_attention.case(1, "tq3_0", "planar3")
    with pytest.raises(ValueError, match="^k and v: found tq3_0 and planar3 rows of 128 and 128 values, wanted a pair that the CUDA kernels"):
        pyggmlq.flash_attn(q, k, v, type_k="tq3_0", type_v="planar3", backend="cuda")


# --- host and device arrays give the same ----------------------------------------------------------------------------------


@pytest.fixture(params=["host", "device", "foreign"])
def arrays(request, library, monkeypatch):
    """Where the arrays of backend "cuda" lie; `foreign` are known by __cuda_array_interface__ alone."""
    if request.param != "host":
        device_arrays.use(monkeypatch, {"device": lambda array: array, "foreign": device_arrays.Foreign}[request.param])


@pytest.mark.parametrize("name, row_bytes", [("tq3_0", 112), ("planar3", 100)])
def test_shapes(arrays, name, row_bytes):
    test_api.test_shapes(name, row_bytes, "cuda")


@pytest.mark.parametrize("test", [
    test_api.test_views_give_what_copies_give, test_api.test_out_is_written_and_returned, test_api.test_vec_dot_broadcasts,
    test_api.test_mul_mat_vec, test_api.test_a_wrong_index_writes_nothing, test_api.test_check_says_where,
    test_attention.test_what_is_masked_has_no_influence, test_attention.test_strided_views, test_attention.test_nothing_to_do,
])  # fmt: skip
def test_the_tests_of_the_other_back_ends(arrays, test):
    test("cuda")


def test_the_term_of_centered_keys(arrays):
    """Contiguous and not, of one sequence and of several."""
    for seqs in None, (4, 2):
        q, k, v = test_attention.case(5, "tq3_0", "f16", seqs=seqs)
        options = dict(type_k="tq3_0", type_v="f16")
        term = test_attention.term_of(5, q, k, 32, neox=seqs is None)
        wanted = pyggmlq.flash_attn(q, k, v, term=term, **options)
        wide_w, wide_positions = (np.concatenate([a, a], axis=-1) for a in (term.w, term.positions))
        for same in term, term._replace(w=wide_w[..., :64], positions=wide_positions[..., : k.shape[-2]]):
            assert np.array_equal(pyggmlq.flash_attn(q, k, v, term=same, backend="cuda", **options), wanted)


@pytest.mark.parametrize("dtype", ["i1", "u8", ">i2"])
def test_rows_by_index(arrays, dtype):
    test_api.test_rows_by_index(dtype, "cuda")


def test_many_axes(arrays):
    x = normal(2, 3, 2, 2, 2, 64)
    b = pyggmlq.quantize(x)
    assert np.array_equal(pyggmlq.quantize(x, backend="cuda"), b)
    assert np.array_equal(pyggmlq.dequantize(b.swapaxes(0, 3), backend="cuda"), pyggmlq.dequantize(b.swapaxes(0, 3)))
    assert np.array_equal(pyggmlq.vec_dot(b, x[0, 0], backend="cuda"), pyggmlq.vec_dot(b, x[0, 0]))


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_vectors_pass_through(arrays, kind):
    for name, file in test_vectors.FILES.items():
        for vector in file[kind]:
            test_vectors.test_decode(name, vector, "cuda")


def test_repeated_rows(arrays):
    """A stride of 0."""
    b, x = pyggmlq.quantize(normal(1, 64)), normal(3, 64, seed=1)
    many = np.broadcast_to(b, (5, 28))
    assert np.array_equal(pyggmlq.dequantize(many, backend="cuda"), pyggmlq.dequantize(many))
    assert np.array_equal(pyggmlq.mul_mat_vec(many, x, backend="cuda"), pyggmlq.mul_mat_vec(many, x))
    assert np.array_equal(pyggmlq.get_rows(many, [4, 0], backend="cuda"), pyggmlq.get_rows(many, [4, 0]))


REFUSED = [case for case in test_api.REFUSED if not case[2].startswith(("backend", "x: found DeviceMemory"))]


@pytest.mark.parametrize("call, kind, message", REFUSED, ids=[message for _, _, message in REFUSED])
@pytest.mark.parametrize("where", ["host", "device"])
def test_refused_in_the_same_words(library, monkeypatch, where, call, kind, message):
    for name in device_arrays.FUNCTIONS:
        function = getattr(pyggmlq, name)
        on_cuda = lambda *a, f=function, **o: f(*a, **{**o, "backend": "cuda"})  # noqa: E731
        monkeypatch.setattr(pyggmlq, name, on_cuda if where == "host" else device_arrays.on_device(function))
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and str(caught.value) == message
    del caught


# --- device arrays ---------------------------------------------------------------------------------------------------------


def test_array_interface(library):
    x = normal(3, 4, 32)
    a = CudaArray.upload(x)
    interface = a.__cuda_array_interface__
    assert interface == {"version": 3, "shape": (3, 4, 32), "typestr": "<f4", "data": (a.address, False), "strides": None, "stream": None}
    assert (a.shape, a.dtype, a.ndim, a.size, a.nbytes, len(a), a.device) == ((3, 4, 32), np.float32, 3, 384, 1536, 3, 0)
    assert repr(a) == "CudaArray(shape=(3, 4, 32), dtype=float32, device=0)"
    assert np.array_equal(a.numpy(), x) and a.numpy().flags.c_contiguous
    view = CudaArray.adopt("x", device_arrays.Foreign(a, shape=(4, 3), strides=(-128, 512), data=(a.address + 384, True)))
    assert np.array_equal(view.numpy(), x[:, ::-1, 0].T) and not view.flags.writeable and not view.flags.c_contiguous
    for wrong in (lambda: np.asarray(a), lambda: np.sum(a)):
        with pytest.raises(TypeError, match="wanted a call of its .numpy()"):
            wrong()
    assert CudaArray.upload(np.float32(3)).numpy() == 3 and CudaArray.upload(np.float32(3)).shape == ()


def test_memory_lives_as_long_as_an_array(library):
    a = CudaArray.upload(normal(2, 32))
    b = a.reshape(64)
    foreign = device_arrays.Foreign(b)
    del a, b
    assert len(library.memory) == 1
    adopted = CudaArray.adopt("x", foreign)
    del foreign
    assert np.array_equal(adopted.numpy(), normal(64))
    del adopted
    assert not library.memory


def test_memory_is_padded_for_aligned_words(library):
    """The last byte of a row of 14 or 50 bytes may be read by a word of 16."""
    for n in (0, 1, 14, 250, 255, 256, 257):
        a = CudaArray.empty((n,), np.uint8)
        assert library.memory[a.address].nbytes >= -(-n // 16) * 16
        del a


@pytest.mark.parametrize("changes, kind, message", [
    (dict(mask=1), ValueError, "x: found an array with a mask, wanted one without"),
    (dict(stream=0), ValueError, "x: found stream 0 in its CUDA array interface, wanted 1 (legacy) or 2 (per thread)"),
    (dict(data=(4096, False)), ValueError, "x: found memory of the host in its CUDA array interface, wanted a device's"),
    (dict(shape=(1,) * 16 + (32,)), ValueError, "x: found 17 axes, wanted at most 16"),
    (dict(typestr="<f8"), TypeError, "x: found dtype float64, wanted float32"),
])  # fmt: skip
def test_interfaces_that_are_refused(library, changes, kind, message):
    a = CudaArray.upload(normal(32))
    with pytest.raises(kind) as caught:
        pyggmlq.quantize(device_arrays.Foreign(a, **changes), backend="cuda")
    assert str(caught.value) == message
    del caught


def test_streams_are_waited_for(library):
    """Those of every array, before their memory is used; and at the end the device."""
    a, out = CudaArray.upload(normal(32)), CudaArray.empty((14,), np.uint8)
    library.waited.clear()
    foreign = device_arrays.Foreign(out, stream=2)
    assert pyggmlq.quantize(device_arrays.Foreign(a, stream=77), backend="cuda", out=foreign) is foreign
    assert library.waited == [77, 2, 0]


def test_host_and_device_arrays_may_be_mixed(library):
    x, rows = normal(4, 64), pyggmlq.quantize(normal(6, 64, seed=1))
    wanted = pyggmlq.mul_mat_vec(rows, x)
    for b, y in ((CudaArray.upload(rows), x), (rows, CudaArray.upload(x))):
        found = pyggmlq.mul_mat_vec(b, y, backend="cuda")
        assert isinstance(found, CudaArray) and np.array_equal(found.numpy(), wanted)
    host = np.empty((4, 28), np.uint8)
    assert pyggmlq.quantize(CudaArray.upload(x), backend="cuda", out=host) is host
    assert np.array_equal(host, pyggmlq.quantize(x))
    cache = CudaArray.upload(rows)
    pyggmlq.set_rows(cache, CudaArray.upload(np.array([5, 0])), x[:2], backend="cuda")
    assert np.array_equal(pyggmlq.get_rows(cache, [0, 5], backend="cuda").numpy(), pyggmlq.dequantize(pyggmlq.quantize(x[[1, 0]])))
    with pytest.raises(ValueError, match="indices: found 6, wanted 0 <= index < 6"):
        pyggmlq.get_rows(cache, CudaArray.upload(np.array([6])), backend="cuda")
    del b, y, found


def test_in_place(library):
    x = CudaArray.upload(normal(2, 32))
    assert pyggmlq.rotate(x, backend="cuda", out=x) is x
    assert np.array_equal(x.numpy(), pyggmlq.rotate(normal(2, 32)))
    foreign = device_arrays.Foreign(x)
    assert pyggmlq.unrotate(foreign, backend="cuda", out=foreign) is foreign
    assert np.allclose(x.numpy(), normal(2, 32), atol=1e-6)


def test_several_devices(library):
    library.devices = 2
    first = CudaArray.upload(normal(2, 32))
    library.current = 1
    second = CudaArray.upload(normal(2, 32))
    library.current = 0
    result = pyggmlq.rotate(second, backend="cuda")
    assert result.device == second.device == 1 and library.current == 0
    rows = pyggmlq.quantize(second, backend="cuda")
    with pytest.raises(ValueError, match="^arrays: found some on device 0 and some on device 1, wanted all on one device$"):
        pyggmlq.vec_dot(rows, first, backend="cuda")
    assert library.current == 0


def test_device_arrays_are_for_cuda_alone(library):
    with pytest.raises(TypeError, match="^x: found CudaArray in device memory, which only backends 'cuda', 'hip' and 'metal' take, wanted a numpy array$"):
        pyggmlq.quantize(CudaArray.upload(normal(32)))


# --- pytest --require ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, skipped, failed", [([], 2, 0), (["--require", "cuda"], 1, 1), (["--require", "llama", "--require", "cuda"], 0, 2)])
def test_require_turns_a_skip_into_a_failure(pytester, options, skipped, failed, monkeypatch):
    pytester.makeconftest((fake_cuda.ROOT / "tests" / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers =\n    cuda: one\n    llama: two\n")
    pytester.makepyfile("""
import pytest
@pytest.mark.cuda
def test_a(): pass
@pytest.mark.llama
def test_b(): pytest.skip("no model")
def test_c(): pass
""")
    with fake_cuda.installed(devices=0):
        done = pytester.runpytest_inprocess("-rsf", *options)
    done.assert_outcomes(passed=1, skipped=skipped, failed=failed)
    text = done.stdout.str()
    assert "it lists no device" in text  # the reason, either way
    assert ("--require cuda: " in text) == ("cuda" in options)
    if failed == 2:
        assert "--require llama: " in text and "no model" in text


def test_require_knows_its_markers(pytester):
    pytester.makeconftest((fake_cuda.ROOT / "tests" / "conftest.py").read_text())
    done = pytester.runpytest_inprocess("--require", "cuba")
    done.stderr.fnmatch_lines(["*--require: found 'cuba', wanted one of the markers*"])
