//! What each primitive of `kernels/prelude.cuh` must do, whatever executes it.

use attn_engine::gpu::driver::{Driver, Launch};
use attn_engine::gpu::kernel::{Module, Source};

// SAFETY: `all` below launches each entry with arrays of the sizes that it reads and writes.
const PRIMITIVES: Source = unsafe {
    Source::new(
        "primitives",
        include_str!("../kernels/primitives.cu"),
        &[
            "copy_16",
            "copy_4",
            "copy_groups",
            "exp2_approximately",
            "warp_reductions",
            "collectives",
            "wide_shuffles",
            "barriers_with_votes",
            "atomics",
            "random_words",
            "blocks_in_step",
        ],
    )
};

/// The module of all primitives.
pub fn module() -> Module {
    Module::new(&PRIMITIVES)
}

/// Device memory that is freed with it.
pub struct Buffer<'a> {
    driver: &'a dyn Driver,
    address: u64,
    bytes: usize,
}

impl<'a> Buffer<'a> {
    pub fn new(driver: &'a dyn Driver, bytes: usize) -> Self {
        Buffer { driver, address: driver.alloc(bytes).unwrap(), bytes }
    }

    pub fn from<T: bytemuck::NoUninit>(driver: &'a dyn Driver, data: &[T]) -> Self {
        let buffer = Buffer::new(driver, size_of_val(data));
        // SAFETY: the buffer has exactly this size.
        unsafe { driver.upload(buffer.address, bytemuck::cast_slice(data)) }.unwrap();
        buffer
    }

    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Vec<T> {
        let mut data = vec![T::zeroed(); self.bytes / size_of::<T>()];
        // SAFETY: no more than the buffer has.
        unsafe { self.driver.download(self.address, bytemuck::cast_slice_mut(&mut data)) }.unwrap();
        data
    }

    pub fn argument(&self) -> [u8; 8] {
        self.address.to_ne_bytes()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`, and launches have ended where results were read.
        unsafe { self.driver.free(self.address, self.bytes) }
    }
}

pub fn launch(
    driver: &dyn Driver,
    module: &Module,
    entry: &str,
    (grid, block): (u32, u32),
    arguments: &[&[u8]],
) -> attn_engine::Result<()> {
    let function = driver.function(module, entry)?;
    let shape = Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared: 0 };
    // SAFETY: the callers give buffers of the sizes that the kernels use.
    unsafe { driver.launch(function, shape, arguments) }?;
    driver.synchronize()
}

/// Every primitive. Panics where one is wrong.
pub fn all(driver: &dyn Driver) {
    copies(driver);
    exp2(driver);
    warp(driver);
    barriers(driver);
    atomics(driver);
    philox(driver);
    blocks(driver);
}

/// Launches blocks that wait for each other.
pub fn launch_cooperative(
    driver: &dyn Driver,
    module: &Module,
    entry: &str,
    blocks: u32,
    arguments: &[&[u8]],
) -> attn_engine::Result<()> {
    let function = driver.function(module, entry)?;
    let shape = Launch { grid: [blocks, 1, 1], block: [64, 1, 1], shared: 0 };
    // SAFETY: the callers give buffers of the sizes that the kernels use.
    unsafe { driver.launch_cooperative(function, shape, arguments) }?;
    driver.synchronize()
}

fn blocks(driver: &dyn Driver) {
    for (blocks, steps) in [(1, 3), (2, 1), (7, 40), (13, 5)] {
        let n = blocks * 64;
        let start: Vec<f32> = (0..2 * n).map(|i| if i < n { (i * 3) as f32 } else { f32::NAN }).collect();
        let (values, counter) = (Buffer::from(driver, &start), Buffer::from(driver, &[0u32]));
        let arguments = [&values.argument()[..], &counter.argument(), &(steps as i32).to_ne_bytes()];
        launch_cooperative(driver, &module(), "blocks_in_step", blocks as u32, &arguments).unwrap();
        let got = &values.read::<f32>()[steps % 2 * n..][..n];
        for (i, &got) in got.iter().enumerate() {
            let origin = (i / 64 + steps) % blocks * 64 + (i + steps) % 64;
            assert_eq!(got, start[origin] + steps as f32, "blocks_in_step: {blocks} blocks, {steps} steps, value {i}");
        }
        assert_eq!(counter.read::<u32>(), [(blocks * steps) as u32]);
    }
}

fn run(driver: &dyn Driver, entry: &str, shape: (u32, u32), arguments: &[&[u8]]) {
    launch(driver, &module(), entry, shape, arguments).unwrap();
}

fn copies(driver: &dyn Driver) {
    let values: Vec<f32> = (0..256).map(|i| i as f32 + 0.5).collect();
    let input = Buffer::from(driver, &values);
    let sources: Vec<i32> = (0..32).map(|t| if t % 5 == 2 { -1 } else { (t * 7) % 32 }).collect();
    let source = Buffer::from(driver, &sources);
    for (entry, width) in [("copy_16", 4), ("copy_4", 1)] {
        let out = Buffer::new(driver, 32 * width * 4);
        run(driver, entry, (1, 32), &[&input.argument(), &source.argument(), &out.argument()]);
        for (i, got) in out.read::<f32>().into_iter().enumerate() {
            let wanted = match sources[i / width] {
                -1 => 0.0,
                s => values[s as usize * width + i % width],
            };
            assert_eq!(got, wanted, "{entry}: value {} of thread {}", i % width, i / width);
        }
    }
    let out = Buffer::new(driver, 96 * 4);
    run(driver, "copy_groups", (1, 32), &[&input.argument(), &out.argument()]);
    for (i, got) in out.read::<f32>().into_iter().enumerate() {
        assert_eq!(got, values[i / 32 * 32 + 31 - i % 32], "copy_groups: value {i}");
    }
}

fn exp2(driver: &dyn Driver) {
    let mut values: Vec<f32> = (0..60_000).map(|i| -150.0 + i as f32 * (300.0 / 60_000.0)).collect();
    values.extend([0.0, -0.0, 1.0, -1.0, 127.0, 128.0, -126.0, -126.5, -127.0, -1e30, 1e30]);
    values.extend([f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 1e-30, -1e-30]);
    let (input, out) = (Buffer::from(driver, &values), Buffer::new(driver, values.len() * 4));
    let n = (values.len() as i32).to_ne_bytes();
    run(
        driver,
        "exp2_approximately",
        (values.len().div_ceil(256) as u32, 256),
        &[&input.argument(), &out.argument(), &n],
    );
    for (x, y) in values.into_iter().zip(out.read::<f32>()) {
        let wanted = f64::from(x).exp2();
        if x.is_nan() {
            assert!(y.is_nan());
        } else if wanted < f64::from(f32::MIN_POSITIVE) {
            // Flushed to zero; the two sides of the border are less than a rounding apart.
            assert!(y == 0.0 || (y <= f32::MIN_POSITIVE && wanted > 1.1754e-38), "2^{x} = {y}");
        } else if wanted > f64::from(f32::MAX) {
            assert_eq!(y, f32::INFINITY, "2^{x}");
        } else {
            let error = (f64::from(y) / wanted - 1.0).abs();
            assert!(error <= 2f64.powi(-22), "2^{x} = {y}, relative error {error:e}");
        }
    }
}

fn warp(driver: &dyn Driver) {
    // One-hot: each lane alone must reach every lane of its warp, and none of the other.
    for hot in 0..64usize {
        let mut values = [0f32; 64];
        values[hot] = 3.0;
        let input = Buffer::from(driver, &values);
        let (sums, maxima) = (Buffer::new(driver, 256), Buffer::new(driver, 256));
        run(driver, "warp_reductions", (1, 64), &[&input.argument(), &sums.argument(), &maxima.argument()]);
        for (name, got) in [("warp_sum", sums.read::<f32>()), ("warp_max", maxima.read())] {
            for (t, got) in got.into_iter().enumerate() {
                assert_eq!(got, if t / 32 == hot / 32 { 3.0 } else { 0.0 }, "{name}: {hot} to {t}");
            }
        }
    }
    let values: Vec<i32> = (0..32).map(|t| (t * 11) % 32 + 100 * (t % 2)).collect();
    let (input, out) = (Buffer::from(driver, &values), Buffer::new(driver, 320 * 4));
    run(driver, "collectives", (1, 32), &[&input.argument(), &out.argument()]);
    let out = out.read::<i32>();
    let ballot = |hit: &dyn Fn(usize) -> bool| (0..32).fold(0u32, |bits, t| bits | u32::from(hit(t)) << t) as i32;
    for t in 0..32 {
        let up = |delta: usize, width: usize| if t % width < delta { t } else { t - delta };
        let down = |delta: usize, width: usize| if t % width + delta >= width { t } else { t + delta };
        let wanted = [
            values[5],
            values[t / 8 * 8 + 3],
            values[t ^ 5],
            values[up(3, 32)],
            values[down(3, 32)],
            values[up(1, 16)],
            values[down(2, 4)],
            ballot(&|t| values[t] % 3 == 0),
            i32::from(values.contains(&7)) * 2 + 1,
            if t < 16 { values[t ^ 1] } else { ballot(&|t| t >= 16 && t % 2 == 1) },
        ];
        assert_eq!(out[t * 10..t * 10 + 10], wanted, "collectives: lane {t}");
    }
    let values: Vec<f64> = (0..32).map(|t| 1.0 / f64::from(t + 1)).collect();
    let (input, out) = (Buffer::from(driver, &values), Buffer::new(driver, 256));
    run(driver, "wide_shuffles", (1, 32), &[&input.argument(), &out.argument()]);
    for (t, got) in out.read::<f64>().into_iter().enumerate() {
        assert_eq!(got, values[(t + 1).min(31)], "wide_shuffles: lane {t}");
    }
}

fn barriers(driver: &dyn Driver) {
    let out = Buffer::new(driver, 96 * 4);
    run(driver, "barriers_with_votes", (1, 96), &[&out.argument()]);
    assert_eq!(out.read::<i32>(), vec![48 * 16 + 8 + 2; 96]);
}

fn atomics(driver: &dyn Driver) {
    let (sum, count, maximum) =
        (Buffer::from(driver, &[0f32]), Buffer::from(driver, &[0i32]), Buffer::from(driver, &[0u32]));
    run(driver, "atomics", (64, 256), &[&sum.argument(), &count.argument(), &maximum.argument()]);
    assert_eq!(sum.read::<f32>(), [8192.0]);
    assert_eq!(count.read::<i32>(), [32768]);
    assert_eq!(maximum.read::<u32>(), [64 * 256 - 1]);
}

/// The known answers of Random123 for philox4x32-10.
fn philox(driver: &dyn Driver) {
    let cases: [([u32; 4], u64, [u32; 4]); 3] = [
        ([0; 4], 0, [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([!0; 4], !0, [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            0x299f31d0_a4093822,
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ];
    let counters: Vec<u32> = (0..32).flat_map(|t| cases[t % 3].0).collect();
    let seeds: Vec<u64> = (0..32).map(|t| cases[t % 3].1).collect();
    let (counter, seed) = (Buffer::from(driver, &counters), Buffer::from(driver, &seeds));
    let (out, uniforms) = (Buffer::new(driver, 512), Buffer::new(driver, 512));
    let arguments = [counter.argument(), seed.argument(), out.argument(), uniforms.argument()];
    run(driver, "random_words", (1, 32), &arguments.each_ref().map(|a| &a[..]));
    let (out, uniforms) = (out.read::<u32>(), uniforms.read::<f32>());
    for t in 0..32 {
        assert_eq!(out[t * 4..t * 4 + 4], cases[t % 3].2, "philox: thread {t}");
    }
    for (word, uniform) in out.into_iter().zip(uniforms) {
        assert_eq!(uniform, (word >> 8) as f32 / 16_777_216.0);
    }
}
