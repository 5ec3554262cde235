//! The emulator against what CUDA defines, and against mistakes that it must find.

#[path = "common/primitives.rs"]
mod primitives;
#[path = "common/tensor_cores.rs"]
mod tensor_cores;

use attn_engine::gpu::driver::{Driver, Launch};
use attn_engine::gpu::emulator::{CopyPolicy, Emulator, EmulatorOptions, Order, Sanitizer, reexec_with};
use attn_engine::gpu::kernel::{Module, Source};
use primitives::{Buffer, launch, launch_cooperative};
use tensor_cores::Half;

// SAFETY: the tests launch its entries with memory of the sizes that they need; those that are wrong on purpose run
// under a sanitizer only.
const SCHEDULING: Source = unsafe {
    Source::new(
        "scheduling",
        include_str!("kernels/scheduling.cu"),
        &[
            "add",
            "block_sum",
            "leaves_early",
            "diverges",
            "half_warp",
            "mixed_collectives",
            "pipeline",
            "out_of_bounds",
            "shared_out_of_bounds",
            "lost_update",
            "blocks_race",
            "too_much_shared",
            "language",
            "meets",
            "fails_alone",
            "waits_alone",
        ],
    )
};

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];
const POLICIES: [CopyPolicy; 4] = [CopyPolicy::Late, CopyPolicy::Early, CopyPolicy::Random(1), CopyPolicy::Random(2)];

fn emulator() -> Emulator {
    Emulator::new(EmulatorOptions { threads: 2, ..Default::default() }).unwrap()
}

fn module() -> Module {
    Module::new(&SCHEDULING)
}

/// `kernels/scheduling.cu:LINE` of the line that ends in `// here: MARK`.
fn place(mark: &str) -> String {
    place_in(&SCHEDULING, mark)
}

fn place_in(source: &Source, mark: &str) -> String {
    let mark = format!("// here: {mark}");
    let line = source.text.lines().position(|line| line.ends_with(&mark)).unwrap();
    format!("kernels/{}.cu:{}", source.name, line + 1)
}

/// The report of a launch that must fail.
fn failure(e: &Emulator, entry: &str, shape: (u32, u32), arguments: &[&[u8]]) -> String {
    launch(e, &module(), entry, shape, arguments).unwrap_err().to_string()
}

#[test]
fn primitives_hold_in_every_order() {
    let e = emulator();
    for order in ORDERS {
        for copies in POLICIES {
            e.set_schedule(order, copies);
            primitives::all(&e);
        }
        tensor_cores::all(&e);
    }
}

#[test]
fn products_round_in_the_order_of_k() {
    for product in tensor_cores::noisy_products(&emulator()) {
        assert_eq!(product.got, product.in_order, "{}", product.name);
    }
}

#[test]
fn wrong_uses_of_tensor_cores_are_named() {
    let e = emulator();
    let out = Buffer::new(&e, 64 * 4);
    let failure = |entry: &str, threads: u32, arguments: &[&[u8]]| {
        launch(&e, &Half::F16.module(), entry, (1, threads), arguments).unwrap_err().to_string()
    };
    let here = |mark: &str| place_in(&tensor_cores::SOURCE, mark);
    let report = failure("row_not_aligned", 32, &[&out.argument()]);
    assert!(report.contains("not a multiple of 16") && report.contains(&here("row_not_aligned")), "{report}");
    let report = failure("row_not_shared", 32, &[&out.argument()]);
    assert!(
        report.contains("not in the block's shared memory") && report.contains(&here("row_not_shared")),
        "{report}"
    );
    let report = failure("different_products", 64, &[&out.argument()]);
    assert!(report.contains("different collectives") && report.contains("waits at mma_16x8x8_tf32"), "{report}");
    assert!(report.contains(&here("different_products, one")), "{report}");
    assert!(report.contains(&here("different_products, other")), "{report}");
    let report = failure("mma_16", 16, &[&out.argument(), &out.argument(), &out.argument()]);
    assert!(report.contains("fewer than 32 threads"), "{report}");
}

#[test]
fn a_kernel_without_barriers() {
    let e = emulator();
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
    let (a, b, out) = (Buffer::from(&e, &a), Buffer::from(&e, &b), Buffer::new(&e, n * 4));
    for order in ORDERS {
        e.set_schedule(order, CopyPolicy::Late);
        let arguments: [&[u8]; 4] = [&a.argument(), &b.argument(), &out.argument(), &(n as i32).to_ne_bytes()];
        launch(&e, &module(), "add", (4, 256), &arguments).unwrap();
        assert!(out.read::<f32>().into_iter().enumerate().all(|(i, x)| x == 1.5 * i as f32));
    }
}

/// Sums of 5 blocks, and what they should be.
fn block_sums(e: &Emulator, module: &Module) -> (Vec<f32>, Vec<f32>) {
    let values: Vec<f32> = (0..5 * 256).map(|i| (i * 7 % 31) as f32).collect();
    let (input, out) = (Buffer::from(e, &values), Buffer::new(e, 20));
    launch(e, module, "block_sum", (5, 256), &[&input.argument(), &out.argument()]).unwrap();
    (out.read(), values.chunks(256).map(|block| block.iter().sum()).collect())
}

#[test]
fn barriers_hold_in_every_order_and_a_missing_one_shows() {
    let e = emulator();
    let without = module().define("WITHOUT_BARRIER", 1);
    let mut wrong = 0;
    for order in ORDERS {
        e.set_schedule(order, CopyPolicy::Late);
        let (got, wanted) = block_sums(&e, &module());
        assert_eq!(got, wanted, "{order:?}");
        let (got, wanted) = block_sums(&e, &without);
        wrong += usize::from(got != wanted);
    }
    assert!(wrong >= 2, "a missing barrier shows in {wrong} of {} orders", ORDERS.len());
}

#[test]
fn threads_that_leave_before_a_barrier_are_named() {
    let e = emulator();
    for order in ORDERS {
        e.set_schedule(order, CopyPolicy::Late);
        let report = failure(&e, "leaves_early", (3, 256), &[&100i32.to_ne_bytes()]);
        assert!(report.starts_with("kernel leaves_early (scheduling): block ("), "{report}");
        assert!(
            report.contains(&format!("threads 0-99 wait at __syncthreads ({})", place("leaves_early"))),
            "{report}"
        );
        assert!(report.contains("threads 100-255 have left the kernel"), "{report}");
        launch(&e, &module(), "leaves_early", (3, 256), &[&256i32.to_ne_bytes()]).unwrap();
        launch(&e, &module(), "leaves_early", (3, 256), &[&0i32.to_ne_bytes()]).unwrap();
    }
}

#[test]
fn different_barriers_at_once_are_named() {
    let e = emulator();
    let out = Buffer::new(&e, 8);
    let report = failure(&e, "diverges", (1, 64), &[&out.argument()]);
    assert!(report.contains("block (0, 0, 0): threads wait at different barriers: "), "{report}");
    assert!(report.contains(&format!("threads 0-31 wait at __syncthreads ({})", place("diverges, one"))), "{report}");
    assert!(
        report.contains(&format!("threads 32-63 wait at __syncthreads ({})", place("diverges, other"))),
        "{report}"
    );
}

#[test]
fn a_collective_without_its_lanes_is_named() {
    let e = emulator();
    let out = Buffer::new(&e, 128);
    let report = failure(&e, "half_warp", (1, 32), &[&out.argument()]);
    let wanted = format!(
        "threads 0-15 wait at __shfl_xor_sync with mask 0xffffffff ({}); threads 16-31 have left the kernel",
        place("half_warp")
    );
    assert!(report.contains(&wanted), "{report}");
    let report = failure(&e, "mixed_collectives", (1, 32), &[&out.argument()]);
    assert!(report.contains("different collectives"), "{report}");
    assert!(report.contains(&format!("__syncwarp with mask 0xffffffff ({})", place("mixed_collectives"))), "{report}");
}

fn pipeline(e: &Emulator, module: &Module) -> bool {
    let tiles = 5;
    let values: Vec<f32> = (0..tiles * 128).map(|i| (i * 13 % 101) as f32).collect();
    let (input, out) = (Buffer::from(e, &values), Buffer::new(e, 512));
    let function = e.function(module, "pipeline").unwrap();
    let shape = Launch { grid: [1, 1, 1], block: [128, 1, 1], shared: 2 * 128 * 4 };
    // SAFETY: as the kernel asks.
    unsafe { e.launch(function, shape, &[&input.argument(), &out.argument(), &(tiles as i32).to_ne_bytes()]) }.unwrap();
    out.read::<f32>()
        .into_iter()
        .enumerate()
        .all(|(t, sum)| sum == (0..tiles).map(|tile| values[tile * 128 + (t + 1) % 128]).sum::<f32>())
}

#[test]
fn blocks_that_wait_for_each_other_in_vain_are_named() {
    let e = emulator();
    let meet = |blocks: u32, goal: u32, absent: i32| {
        let counter = Buffer::from(&e, &[0u32]);
        let arguments = [&counter.argument()[..], &goal.to_ne_bytes(), &absent.to_ne_bytes()];
        launch_cooperative(&e, &module(), "meets", blocks, &arguments).map_err(|e| e.to_string())
    };
    for order in ORDERS {
        e.set_schedule(order, CopyPolicy::Late);
        meet(5, 5, -1).unwrap();
        // More blocks than there were threads; then fewer again.
        meet(40, 40, -1).unwrap();
        meet(3, 2, 1).unwrap();
        let report = meet(3, 3, 1).unwrap_err();
        assert!(report.contains("deadlock") && report.contains("counted 2 of 3 signals"), "{report}");
        assert!(report.contains(&place("meets")), "{report}");
    }
    let report = meet(1000, 1, -1).unwrap_err();
    assert!(report.contains("1000 blocks, and at most 64"), "{report}");
}

#[test]
fn waiting_for_blocks_takes_a_cooperative_launch() {
    let e = emulator();
    let counter = Buffer::from(&e, &[0u32]);
    let arguments = [&counter.argument()[..], &2u32.to_ne_bytes(), &(-1i32).to_ne_bytes()];
    let report = failure(&e, "meets", (2, 64), &arguments);
    assert!(report.contains("not cooperative") && report.contains(&place("meets, signal")), "{report}");
}

#[test]
fn a_failing_block_ends_those_that_wait_for_it() {
    let e = emulator();
    let counter = Buffer::from(&e, &[0u32]);
    let failed = launch_cooperative(&e, &module(), "fails_alone", 6, &[&counter.argument()]);
    let report = failed.unwrap_err().to_string();
    assert!(report.contains("block (2, 0, 0)") && report.contains(&place("fails_alone")), "{report}");
    // The workers are as before.
    primitives::all(&e);
}

#[test]
fn a_waiting_thread_lets_its_block_go_on() {
    let e = emulator();
    for order in ORDERS {
        e.set_schedule(order, CopyPolicy::Late);
        let (counter, out) = (Buffer::from(&e, &[0u32]), Buffer::new(&e, 64 * 4));
        launch_cooperative(&e, &module(), "waits_alone", 2, &[&counter.argument(), &out.argument()]).unwrap();
        assert_eq!(out.read::<i32>(), [7; 64]);
    }
}

#[test]
fn asynchronous_copies_show_missing_waits_and_early_overwrites() {
    let e = emulator();
    let (no_wait, no_barrier) = (module().define("WITHOUT_WAIT", 1), module().define("WITHOUT_LAST_BARRIER", 1));
    for order in ORDERS {
        for copies in POLICIES {
            e.set_schedule(order, copies);
            assert!(pipeline(&e, &module()), "{order:?} {copies:?}");
        }
        e.set_schedule(order, CopyPolicy::Late);
        assert!(!pipeline(&e, &no_wait), "late copies hide a missing wait, {order:?}");
        e.set_schedule(order, CopyPolicy::Early);
        assert!(pipeline(&e, &no_wait));
        // The next tile but one goes to the buffer that slower threads still read.
        assert!(!pipeline(&e, &no_barrier), "early copies hide a missing barrier, {order:?}");
    }
}

#[test]
fn the_language_of_kernels() {
    #[repr(C)]
    #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
    struct Parameters {
        out: u64,
        offset: i64,
        scale: f32,
        padding: u32,
    }
    let e = emulator();
    let (out, cell) = (Buffer::new(&e, 100 * 4), Buffer::new(&e, 40 * 4));
    let address = |b: &Buffer| u64::from_ne_bytes(b.argument());
    let parameters = Parameters { out: address(&out), offset: 4, scale: 0.5, padding: 0 };
    let view = [address(&cell), 20, 5, 2]; // 20 + 2·5 + 3·2 = 36
    let arguments: [&[u8]; 3] = [bytemuck::bytes_of(&parameters), &[1], bytemuck::cast_slice(&view)];
    launch(&e, &module(), "language", (1, 96), &arguments).unwrap();
    let got = out.read::<f32>();
    for t in 0..96 {
        // Σ over the lanes of a warp of Σᵢ (i + thread) / 2, and 32 of the 96 threads are multiples of 3.
        let warp = (95 - t) / 32;
        let sum: usize = (warp * 32..warp * 32 + 32).map(|thread| 6 + 4 * thread).sum();
        assert_eq!(got[4 + t], 0.5 * sum as f32 + 32.0);
    }
    assert!(got[..4].iter().all(|x| x.is_nan()), "fresh memory is NaN");
    assert_eq!(cell.read::<f32>()[36], 5.0);
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let e = emulator();
    let out = Buffer::new(&e, 64 * 4);
    let address = out.argument();
    type Refused<'a> = (&'a str, (u32, u32), &'a [&'a [u8]], &'a str);
    let cases: [Refused; 7] = [
        ("half_warp", (1, 32), &[], "takes 1 arguments, and the launch gives 0"),
        ("half_warp", (1, 32), &[&[0; 4]], "argument 0 has 8 bytes, and the launch gives 4"),
        ("half_warp", (1, 33), &[&address], "KERNEL allows 32"),
        ("half_warp", (0, 32), &[&address], "a grid of [0, 1, 1] blocks"),
        ("add", (1, 1025), &[&address, &address, &address, &[0; 4]], "a block of [1025, 1, 1] threads"),
        ("too_much_shared", (1, 32), &[&address], "shared memory `large` of 262144 bytes"),
        ("pipeline", (1, 32), &[&address, &address, &[0; 4]], "uses dynamic shared memory, but the launch gives none"),
    ];
    for (entry, shape, arguments, wanted) in cases {
        let report = failure(&e, entry, shape, arguments);
        assert!(report.contains(wanted) && report.contains(entry), "{report}");
    }
    let report = failure(&e, "shared_out_of_bounds", (1, 32), &[&address]);
    assert!(report.contains("past the end of shared memory `small`"), "{report}");
    let function = e.function(&module(), "add").unwrap();
    let wide = Launch { grid: [1, 65_536, 1], block: [1, 1, 1], shared: 0 };
    // SAFETY: refused before anything runs.
    let result = unsafe { e.launch(function, wide, &[&address, &address, &address, &[0; 4]]) };
    assert!(result.unwrap_err().to_string().contains("65535"));
    assert!(e.function(&module(), "absent").unwrap_err().to_string().contains("no such entry"));
}

#[test]
fn a_kernel_that_does_not_compile_shows_the_log() {
    // SAFETY: never runs.
    const BROKEN: Source =
        unsafe { Source::new("broken", "#include \"prelude.cuh\"\nKERNEL(k, 1)() { nonsense(); }\n", &["k"]) };
    let report = emulator().function(&Module::new(&BROKEN).define("N", 3), "k").unwrap_err().to_string();
    assert!(report.starts_with("kernel broken[N=3]: "), "{report}");
    assert!(report.contains("kernels/broken.cu:2:") && report.contains("nonsense"), "{report}");
}

#[test]
fn captures_replay_what_was_recorded() {
    let e = emulator();
    let (count, copy) = (Buffer::from(&e, &[0i32]), Buffer::from(&e, &[0i32]));
    let (sum, maximum) = (Buffer::from(&e, &[0f32]), Buffer::from(&e, &[0u32]));
    let address = |b: &Buffer| u64::from_ne_bytes(b.argument());
    assert!(e.begin_capture().unwrap());
    let function = e.function(&primitives::module(), "atomics").unwrap();
    let shape = Launch { grid: [1, 1, 1], block: [256, 1, 1], shared: 0 };
    // SAFETY: as the kernel asks.
    unsafe {
        e.launch(function, shape, &[&sum.argument(), &count.argument(), &maximum.argument()]).unwrap();
        e.copy(address(&copy), address(&count), 4).unwrap();
        e.fill(address(&sum), 0, 4).unwrap();
        assert!(e.upload(address(&sum), &[0; 4]).unwrap_err().to_string().contains("during a capture"));
    }
    let captured = e.end_capture().unwrap();
    assert_eq!(count.read::<i32>(), [0], "recording runs nothing");
    for round in 1..=3 {
        e.replay(captured).unwrap();
        assert_eq!(copy.read::<i32>(), [round * 512]);
        assert_eq!(sum.read::<f32>(), [0.0]);
    }
}

#[test]
fn prefetching_compiles_all() {
    let e = emulator();
    let modules: Vec<Module> = (0..4).map(|i| module().define("VARIANT", i)).collect();
    e.prefetch(&modules).unwrap();
    for module in &modules {
        block_sums(&e, module);
    }
    let (free, total) = e.memory().unwrap();
    assert!(0 < free && free <= total);
    let (from, to) = (e.record().unwrap(), e.record().unwrap());
    assert!(e.elapsed_ms(from, to).unwrap() >= 0.0);
}

/// Not a test of its own: what `under_a_sanitizer` starts, with the name of a kernel in the environment.
#[test]
#[ignore = "run by the tests of the sanitizers"]
fn sanitized() {
    let Ok(case) = std::env::var("EMULATOR_CASE") else { return };
    let (sanitizer, entry) = case.split_once(' ').unwrap();
    let sanitizer = if sanitizer == "address" { Sanitizer::Address } else { Sanitizer::Thread };
    reexec_with(sanitizer).unwrap();
    let e = Emulator::new(EmulatorOptions { threads: 2, sanitize: Some(sanitizer), ..Default::default() }).unwrap();
    match entry {
        "primitives" => {
            tensor_cores::all(&e);
            for order in ORDERS {
                e.set_schedule(order, CopyPolicy::Late);
                primitives::all(&e);
                assert!(pipeline(&e, &module()));
                let (got, wanted) = block_sums(&e, &module());
                assert_eq!(got, wanted);
                // Dropped fibers must leave no trace.
                failure(&e, "leaves_early", (3, 256), &[&100i32.to_ne_bytes()]);
            }
        }
        "out_of_bounds" => {
            let out = Buffer::new(&e, 30 * 4);
            launch(&e, &module(), entry, (1, 32), &[&out.argument(), &30i32.to_ne_bytes()]).unwrap();
        }
        "block_sum" => drop(block_sums(&e, &module().define("WITHOUT_BARRIER", 1))),
        "pipeline" => drop(pipeline(&e, &module().define("WITHOUT_LAST_BARRIER", 1))),
        _ => {
            let out = Buffer::new(&e, 32 * 4);
            let threads = ["blocks_race", "shared_out_of_bounds", "lost_update"].iter().position(|&name| name == entry);
            launch(&e, &module(), entry, (8, [1, 32, 64][threads.unwrap()]), &[&out.argument()]).unwrap();
        }
    }
}

/// The status and the standard error of `sanitized` under a sanitizer; nothing where the compiler lacks it.
fn under_a_sanitizer(sanitizer: Sanitizer, entry: &str) -> Option<(Option<i32>, String)> {
    if let Err(e) = sanitizer.available() {
        eprintln!("skipped: {e}");
        return None;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sanitized", "--ignored", "--nocapture"])
        .env("EMULATOR_CASE", format!("{} {entry}", sanitizer.name()))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.code(), log))
}

#[test]
fn sanitizers_are_content_with_right_kernels() {
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        if let Some((status, log)) = under_a_sanitizer(sanitizer, "primitives") {
            assert_eq!(status, Some(0), "{log}");
        }
    }
}

#[test]
fn address_sanitizer_finds_accesses_out_of_bounds() {
    for entry in ["out_of_bounds", "shared_out_of_bounds"] {
        if let Some((status, log)) = under_a_sanitizer(Sanitizer::Address, entry) {
            assert_eq!(status, Some(66), "{log}");
            assert!(log.contains("AddressSanitizer") && log.contains(&place(entry)), "{log}");
        }
    }
}

#[test]
fn thread_sanitizer_finds_races() {
    for entry in ["lost_update", "blocks_race", "block_sum", "pipeline"] {
        if let Some((status, log)) = under_a_sanitizer(Sanitizer::Thread, entry) {
            assert_eq!(status, Some(66), "{entry}: {log}");
            assert!(log.contains("data race") && log.contains(&place(entry)), "{log}");
        }
    }
}

#[test]
fn a_sanitizer_needs_its_process() {
    if Sanitizer::Thread.is_active() {
        return;
    }
    let options = EmulatorOptions { sanitize: Some(Sanitizer::Thread), ..Default::default() };
    let report = Emulator::new(options).err().unwrap().to_string();
    assert!(report.contains("thread sanitizer"), "{report}");
}
