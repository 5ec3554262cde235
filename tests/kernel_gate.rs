//! The kernel gate on kernels made for it, with the real compiler (NVRTC). Without one these tests fail where CI is
//! set, and say that they did not run elsewhere.

use std::path::Path;

use attn_engine::Error;
use attn_engine::gpu::cuda::cache::{self, Cache};
use attn_engine::gpu::cuda::gate::{self, GateItem, Report};
use attn_engine::gpu::cuda::nvdisasm::Nvdisasm;
use attn_engine::gpu::cuda::nvrtc::{self, Nvrtc};
use attn_engine::gpu::cuda::{Arch, Cuda, devices};
use attn_engine::gpu::driver::Driver;
use attn_engine::gpu::kernel::{Module, Source};

// SAFETY, of all: compiled only, never launched.
const EVERYTHING: Source = unsafe { Source::new("gate", include_str!("kernels/gate.cu"), &["everything", "second"]) };
const TENSOR_CORES: Source = unsafe {
    Source::new(
        "tensor_cores",
        include_str!("kernels/tensor_cores.cu"),
        &["widen_all", "pack_all", "to_tf32_all", "mma_16", "mma_tf32", "load_x4", "load_x2_transposed"],
    )
};
const SPILL: Source = unsafe { Source::new("gate_spill", include_str!("kernels/gate_spill.cu"), &["spilling"]) };
const BROKEN: Source = unsafe { Source::new("gate_broken", include_str!("kernels/gate_broken.cu"), &["broken"]) };

fn everything() -> Module {
    Module::new(&EVERYTHING).define("SCALE", "0.5f")
}

fn compiler() -> Option<&'static Nvrtc> {
    match Nvrtc::get() {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if std::env::var_os("CI").is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("NOT RUN: {error}");
            None
        }
    }
}

fn build(items: &[GateItem], archs: &[Arch], out: Option<&Path>, folder: &Path) -> Report {
    gate::build(items, archs, out, 2, &Cache::below(folder), None, &|_, _| {}).unwrap()
}

#[test]
fn the_prelude_compiles_for_every_architecture_and_the_second_run_is_cached() {
    if compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let items = [GateItem::new(everything()).shared("everything", 2048)];
    let report = build(&items, &Arch::ALL, None, folder.path());
    assert!(report.passed() && report.warnings.is_empty(), "{}", report.table());
    assert_eq!((report.compilations, report.cached, report.ptx), (7, 0, 0));
    assert_eq!(report.rows.len(), 14);
    let row = &report.rows[0];
    assert_eq!((row.static_shared, row.dynamic_shared, row.spills), (512, 2048, 0));
    assert!(row.registers >= 8, "{row:?}");
    let again = build(&items, &Arch::ALL, None, folder.path());
    assert_eq!((again.cached, &again.rows), (7, &report.rows));
    // Other defines are another module.
    let other = [GateItem::new(Module::new(&EVERYTHING).define("SCALE", "2.f"))];
    assert_eq!(build(&other, &Arch::ALL[..1], None, folder.path()).cached, 0);
}

#[test]
fn tensor_cores_compile_for_every_architecture() {
    let Some(nvrtc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let module = |storage: &str| Module::new(&TENSOR_CORES).define("STORAGE", storage);
    let report = build(&["f16", "bf16"].map(|s| GateItem::new(module(s))), &Arch::ALL, None, folder.path());
    assert!(report.passed() && report.warnings.is_empty(), "{}", report.table());
    assert_eq!((report.compilations, report.ptx), (14, 0));
    // And the instructions are those: seen in the PTX that an architecture of the future gets.
    for (storage, wanted) in [
        ("f16", ["mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "cvt.rn.f16x2.f32", "cvt.rn.f16.f32"]),
        ("bf16", ["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "cvt.rn.bf16x2.f32", "cvt.rn.bf16.f32"]),
    ] {
        let code = nvrtc::compile(&module(storage), "sm_990".parse().unwrap(), nvrtc).unwrap().code;
        let text = String::from_utf8_lossy(&code);
        let load = |form| format!("ldmatrix.sync.aligned.m8n8.{form}.shared.b16");
        let loads = ["x4", "x4.trans", "x2", "x2.trans"].map(load);
        let both = ["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "cvt.rna.tf32.f32"];
        for instruction in wanted.iter().chain(&both).copied().chain(loads.iter().map(String::as_str)) {
            assert!(text.contains(instruction), "{storage}: {instruction}");
        }
    }
}

#[test]
fn a_spill_fails_the_gate() {
    if compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let report = build(&[GateItem::new(Module::new(&SPILL))], &[Arch::ALL[1]], None, folder.path());
    assert_eq!(report.problems.len(), 1, "{}", report.table());
    assert!(report.problems[0].kernel.contains("spilling") && report.problems[0].problem.contains("spills"));
    assert!(report.rows[0].spills > 0 && !report.passed());
    assert!(report.table().contains("SPILLS"));
}

#[test]
fn too_much_shared_memory_fails_the_gate() {
    if compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // 512 static bytes and this many fit a block of sm_80 and none of sm_75.
    let items = [GateItem::new(everything()).shared("everything", 100 << 10)];
    let report = build(&items, &Arch::ALL[..2], None, folder.path());
    assert_eq!(report.problems.len(), 1, "{}", report.table());
    assert_eq!(report.problems[0].arch, "sm_75");
    assert!(report.problems[0].problem.contains("512 static, 102400 dynamic"), "{:?}", report.problems);
    // More than 48 KiB of static shared memory: ptxas refuses that itself.
    const LARGE: &str = "#include \"prelude.cuh\"\n\
        KERNEL(large, 32)(float* out, int at) { SHARED(float, room, 20000); room[threadIdx.x] = 1.f; __syncthreads(); \
        out[0] = room[at]; }";
    // SAFETY: compiled only.
    const SOURCE: Source = unsafe { Source::new("gate_large", LARGE, &["large"]) };
    let report = build(&[GateItem::new(Module::new(&SOURCE))], &Arch::ALL[1..2], None, folder.path());
    assert!(report.problems[0].problem.contains("shared"), "{:?}", report.problems);
}

#[test]
fn an_error_names_file_and_line() {
    let Some(nvrtc) = compiler() else { return };
    let module = Module::new(&BROKEN);
    let error = nvrtc::compile(&module, Arch::ALL[1], nvrtc).unwrap_err().to_string();
    assert!(error.contains("gate_broken.cu(4)") && error.contains("not_declared"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let report = build(&[GateItem::new(module)], &Arch::ALL[..1], None, folder.path());
    assert!(report.problems[0].problem.contains("gate_broken.cu(4)"), "{:?}", report.problems);
    // An entry that is declared but not there is found without a GPU.
    const FORGOTTEN: Source =
        // SAFETY: compiled only.
        unsafe { Source::new("gate", include_str!("kernels/gate.cu"), &["everything", "third"]) };
    let module = Module::new(&FORGOTTEN).define("SCALE", 1);
    let report = build(&[GateItem::new(module)], &Arch::ALL[1..2], None, folder.path());
    assert!(report.problems[0].kernel.starts_with("third"), "{:?}", report.problems);
}

#[test]
fn an_unknown_architecture_gets_ptx() {
    let Some(nvrtc) = compiler() else { return };
    let unknown: Arch = "sm_990".parse().unwrap();
    let compiled = nvrtc::compile(&everything(), unknown, nvrtc).unwrap();
    assert!(compiled.ptx && !compiled.target.specific && compiled.target.sm >= 90, "{:?}", compiled.target);
    assert_eq!(compiled.code.last(), Some(&0), "PTX is zero-terminated");
    let text = String::from_utf8_lossy(&compiled.code);
    assert!(text.contains(".entry everything") && text.contains(&format!(".target sm_{}", compiled.target.sm)));
    let ancient: Arch = "sm_52".parse().unwrap();
    if nvrtc.version().0 >= 13 {
        let error = nvrtc::compile(&everything(), ancient, nvrtc).unwrap_err().to_string();
        assert!(error.contains("sm_52") && error.contains("ATTN_NVRTC"), "{error}");
    }
}

#[test]
fn a_prebuilt_folder_needs_no_compiler() {
    let Some(nvrtc) = compiler() else { return };
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let archs = [Arch::ALL[1], Arch::ALL[4]];
    let report = build(&[GateItem::new(everything())], &archs, Some(out.path()), folder.path());
    assert!(report.passed(), "{}", report.table());
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(out.path().join("index.json")).unwrap()).unwrap();
    assert_eq!(index["files"].as_array().unwrap().len(), 2);
    let found = cache::prebuilt(out.path(), &everything(), Arch::from_capability(8, 6)).unwrap();
    assert_eq!(found.target, archs[0]);
    assert_eq!(found.code, nvrtc::compile(&everything(), archs[0], nvrtc).unwrap().code, "no trace of -v in it");
    assert!(cache::prebuilt(out.path(), &everything(), Arch::from_capability(9, 0)).is_some());
    assert!(cache::prebuilt(out.path(), &everything(), Arch::from_capability(12, 0)).is_none());
}

#[test]
fn a_machine_without_a_gpu_says_what_to_do() {
    match (devices(), Cuda::new(0)) {
        (Err(list), Err(open)) => {
            for error in [list, open] {
                assert!(matches!(error, Error::Device { .. }), "{error:?}");
                assert!(error.to_string().contains("--device cpu"), "{error}");
            }
        }
        (Ok(list), Ok(cuda)) => assert_eq!(list[0].sm, cuda.properties().sm),
        (list, open) => panic!("{list:?}, but opening it: {:?}", open.err()),
    }
    assert!(Cuda::new(1000).is_err());
}

/// In `.ci/run` the gate's own stage has fetched nvdisasm before the tests run.
#[test]
fn main_loops_are_read_from_the_machine_code() {
    if compiler().is_none() {
        return;
    }
    let disassembler = match Nvdisasm::find() {
        Ok(found) => found,
        Err(error) if std::env::var_os("CI").is_some() => panic!("{error}"),
        Err(error) => return eprintln!("NOT RUN: {error}"),
    };
    // SAFETY: compiled only.
    const TILES: Source = unsafe { Source::new("gate_tiles", include_str!("kernels/gate_tiles.cu"), &["tiles"]) };
    let folder = tempfile::tempdir().unwrap();
    let items = [GateItem::new(Module::new(&TILES)).threads("tiles", 128)];
    // Turing has neither the product of 16 columns nor the asynchronous copy.
    let archs = &Arch::ALL[1..];
    let cache = Cache::below(folder.path());
    let build = |disassembler| gate::build(&items, archs, None, 2, &cache, disassembler, &|_, _| {}).unwrap();
    // Known already, but not its loops: asking for them finds them.
    assert!(build(None).rows.iter().all(|row| row.main_loop.is_none()));
    let report = build(Some(&disassembler));
    assert!(report.passed(), "{}", report.table());
    assert_eq!((report.rows.len(), report.cached), (6, 0));
    for row in &report.rows {
        let main = row.main_loop.as_ref().unwrap_or_else(|| panic!("{row:?} has no loop"));
        // Unrolled by the compiler, as often as it liked: for each copy two products, two ldmatrix, one of each else.
        let n = main.counts.hmma / 2;
        assert!(n >= 1 && main.counts.hmma == 2 * n && main.counts.ldsm == 2 * n, "{row:?}");
        assert_eq!([main.counts.ldg, main.counts.mufu, main.counts.ffma], [n; 3], "{row:?}");
        assert_eq!(main.counts.tensor_fmas, u64::from(n) * (2048 + 2 * 1024));
        assert_eq!(main.block_flops, 4 * u64::from(n) * (2 * (2048 + 1024) + 64 + 32));
        assert_eq!(main.block_bytes, 4 * u64::from(n) * 512);
        assert!(row.occupancy.is_some_and(|o| o.blocks >= 8), "{row:?}");
    }
    let table = report.main_loops();
    assert!(table.contains("tiles") && table.contains("sm_90a") && table.contains("bound by"), "{table}");
    assert_eq!(build(Some(&disassembler)).cached, 6, "the second time from the cache");
}

#[test]
#[ignore = "downloads 90 MB with pip where it is not cached yet"]
fn install_fetches_a_compiler_that_works() {
    let folder = attn_engine::gpu::cuda::install::install_nvrtc().unwrap();
    assert_eq!(folder, attn_engine::gpu::cuda::install::install_nvrtc().unwrap());
    let nvrtc = Nvrtc::get().unwrap();
    if std::env::var_os("ATTN_NVRTC").is_none() {
        assert_eq!(nvrtc.path().parent(), Some(folder.as_path()));
    }
    assert_eq!(nvrtc.version().0, 13);
}

#[test]
fn serialised_wgmma_fails_the_gate() {
    if compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let archs = [Arch::ALL[4]];
    // An accumulator that is read while the product is under way, which ptxas must wait for.
    const RACING: &str = r#"
        extern "C" __global__ void racing(float* out, unsigned long long a, unsigned long long b) {
            float x0 = 0, x1 = 1, x2 = 2, x3 = 3;
            for (int i = 0; i < 4; ++i) {
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
                asm volatile("{.reg .pred p; setp.ne.b32 p, 1, 0;"
                    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0,%1,%2,%3}, %4, %5, p, 1, 1, 0, 0;}"
                    : "+f"(x0), "+f"(x1), "+f"(x2), "+f"(x3) : "l"(a), "l"(b));
                x0 += 1.f;
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
            }
            asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
            out[threadIdx.x] = x0 + x1 + x2 + x3;
        }"#;
    // SAFETY: compiled only.
    const SOURCE: Source = unsafe { Source::new("gate_racing", RACING, &["racing"]) };
    let report = build(&[GateItem::new(Module::new(&SOURCE))], &archs, None, folder.path());
    assert!(report.problems.iter().any(|p| p.problem.contains("C75")), "{}", report.table());
}
