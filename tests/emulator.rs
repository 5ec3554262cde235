//! The emulator against what CUDA defines, and against mistakes that it must find.

use attn_engine::gpu::driver::{Driver, Launch};
use attn_engine::gpu::emulator::{CopyPolicy, Emulator, EmulatorOptions, Order};
use attn_engine::gpu::kernel::{Module, Source};

// SAFETY: the tests below launch its entries with memory of the sizes that they need; those that are wrong on
// purpose run under a sanitizer only.
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
        ],
    )
};

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(2)];

fn emulator() -> Emulator {
    Emulator::new(EmulatorOptions { threads: 2, ..Default::default() }).unwrap()
}
#[test]
fn smoke() {
    let e = emulator();
    let f = e.function(&Module::new(&SCHEDULING), "add").unwrap();
    let n = 1000;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let (pa, pb, po) = (e.alloc(4 * n).unwrap(), e.alloc(4 * n).unwrap(), e.alloc(4 * n).unwrap());
    unsafe {
        e.upload(pa, bytemuck::cast_slice(&a)).unwrap();
        e.upload(pb, bytemuck::cast_slice(&a)).unwrap();
        let t = std::time::Instant::now();
        for _ in 0..1000 {
        e.launch(f, Launch { grid: [4, 1, 1], block: [256, 1, 1], shared: 0 }, &[&pa.to_ne_bytes(), &pb.to_ne_bytes(), &po.to_ne_bytes(), &(n as i32).to_ne_bytes()]).unwrap();
        }
        eprintln!("{:?}", t.elapsed() / 1000);
        let mut out = vec![0f32; n];
        e.download(po, bytemuck::cast_slice_mut(&mut out)).unwrap();
        assert_eq!(out[999], 1998.0);
    }
}
