"""kernels/check_ptxas.py: what it reads in a report of nvcc 13, and which kernels it lets pass."""

import shutil
import sys

import check_ptxas
import pytest
from check_ptxas import Usage, complaints, demangled, parse, short_name

REPORT = """\
ptxas info    : 28 bytes gmem
ptxas info    : Compiling entry function '_ZN2pq4manyIfLi300EEEvPKT_PS1_' for 'sm_90'
ptxas info    : Function properties for _ZN2pq4manyIfLi300EEEvPKT_PS1_
    1136 bytes stack frame, 1412 bytes spill stores, 1416 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1136 bytes cumulative stack size
ptxas info    : Compiling entry function '_ZN2pq4manyIfLi100EEEvPKT_PS1_' for 'sm_90'
ptxas info    : Function properties for _ZN2pq4manyIfLi100EEEvPKT_PS1_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
ptxas info    : Compile time = 92.888 ms
ptxas info    : Compiling entry function '_ZN2pq6sharesIfEEvPKT_PS1_' for 'sm_90'
ptxas info    : Function properties for _ZN2pq6sharesIfEEvPKT_PS1_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 1 barriers, 1024 bytes smem, 40 bytes cmem[2]
ptxas info    : Compile time = 1.485 ms
ptxas info    : Function properties for _ZN2pq5apartEPKfi
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


class TestParse:
    def test_numbers(self):
        numbers = [(u.registers, u.shared, u.stack, u.spills) for u in parse(REPORT)]
        assert numbers == [(40, 0, 1136, 2828), (168, 0, 0, 0), (14, 1024, 0, 0), (0, 0, 40, 0)]

    @pytest.mark.skipif(not shutil.which("c++filt"), reason="c++filt is not installed")
    def test_names(self):
        assert [u.kernel for u in parse(REPORT)] == ["many<float, 300>", "many<float, 100>", "shares<float>", "apart"]

    def test_without_a_demangler_the_symbols_stay(self, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        assert demangled(["_ZN2pq5apartEPKfi"]) == ["_ZN2pq5apartEPKfi"]

    def test_short_names(self):
        name = "void pq::(anonymous namespace)::f<pq::(anonymous namespace)::G, c10::Half>(pq::Layout, long)"
        assert short_name(name) == "f<G, Half>"


class TestComplaints:
    def usages(self):
        return [Usage("fine", 128, 4096, 0, 0), Usage("many", 129, 0, 0, 0), Usage("local", 9, 0, 32, 8)]

    def test_each_failing_kernel_with_its_reasons(self):
        assert complaints(self.usages(), 128) == [
            "many: 129 registers, more than 128",
            "local: 32 bytes of local memory, 8 bytes spilled",
        ]

    def test_an_exception_passes(self, monkeypatch):
        monkeypatch.setitem(check_ptxas.EXCEPTIONS, "local", "a reason")
        assert complaints(self.usages(), 256) == []


class TestMain:
    """What the exit code says."""

    @pytest.fixture
    def run(self, monkeypatch):
        def main(report):
            monkeypatch.setattr(sys, "argv", ["check_ptxas.py"])
            described = type("Described", (), {"sources": ["one.cu"]})
            monkeypatch.setattr(check_ptxas, "cuda_extension", lambda: described)
            monkeypatch.setattr(check_ptxas, "compile_report", lambda *arguments: report)
            with pytest.raises(SystemExit) as stopped:
                check_ptxas.main()
            return stopped.value.code

        return main

    def test_fails_where_a_kernel_does(self, run, capsys):
        assert run(REPORT) == 1
        assert "4 kernels, 3 fail" in capsys.readouterr().out

    def test_passes_where_all_do(self, run):
        assert run("\n".join(REPORT.splitlines()[10:14])) == 0

    def test_a_report_without_kernels_is_no_success(self, run):
        assert run("ptxas info    : 28 bytes gmem") == 2
