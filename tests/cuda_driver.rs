//! The GPU driver on a GPU: what only hardware can show. Without a GPU the tests say so and pass; with
//! `ATTN_REQUIRE_GPU=1` they fail.

#[path = "common/primitives.rs"]
mod primitives;
#[path = "common/tensor_cores.rs"]
mod tensor_cores;

use attn_engine::gpu::cuda::Cuda;
use attn_engine::gpu::driver::{Driver, Function, Launch, Matmul};
use attn_engine::gpu::kernel::{Module, Source};
use attn_engine::{Error, Precision};

// SAFETY: the launches below pass live buffers of the lengths that they name.
const SOURCE: Source = unsafe { Source::new("driver", include_str!("kernels/driver.cu"), &["scale_add"]) };
const LENGTH: usize = 1000;

fn gpu() -> Option<Cuda> {
    match Cuda::new(0) {
        Ok(cuda) => Some(cuda),
        Err(error) if std::env::var_os("ATTN_REQUIRE_GPU").is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("NOT RUN: {error}");
            None
        }
    }
}

fn kernel(cuda: &Cuda, defined: &str) -> Function {
    cuda.function(&Module::new(&SOURCE).define("DEFINED", defined), "scale_add").unwrap()
}

/// Floats on the GPU for the length of a test.
struct Buffer<'a>(&'a Cuda, u64, usize);

impl<'a> Buffer<'a> {
    fn new(cuda: &'a Cuda, data: &[f32]) -> Self {
        let address = cuda.alloc(data.len() * 4).unwrap();
        assert_eq!(address % 256, 0);
        // SAFETY: just allocated with this size.
        unsafe { cuda.upload(address, bytemuck::cast_slice(data)) }.unwrap();
        Buffer(cuda, address, data.len())
    }

    fn read(&self) -> Vec<f32> {
        let mut data = vec![f32::NAN; self.2];
        // SAFETY: allocated with this size.
        unsafe { self.0.download(self.1, bytemuck::cast_slice_mut(&mut data)) }.unwrap();
        data
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        // SAFETY: from `alloc` with this size, used no more.
        unsafe { self.0.free(self.1, self.2 * 4) };
    }
}

fn launch(cuda: &Cuda, function: Function, input: &Buffer, out: &Buffer, shared: u32) -> Result<(), Error> {
    let view = [input.1, 0, 0, 1].map(u64::to_ne_bytes).concat();
    let arguments: [&[u8]; 4] = [&view, &out.1.to_ne_bytes(), &2f32.to_ne_bytes(), &(LENGTH as i32).to_ne_bytes()];
    let launch = Launch { grid: [LENGTH.div_ceil(64) as u32, 1, 1], block: [64, 1, 1], shared };
    // SAFETY: both buffers hold LENGTH floats.
    unsafe { cuda.launch(function, launch, &arguments) }
}

fn ramp() -> Vec<f32> {
    (0..LENGTH).map(|i| i as f32).collect()
}

#[test]
fn copies_launches_and_times() {
    let Some(cuda) = gpu() else { return };
    let (input, out) = (Buffer::new(&cuda, &ramp()), Buffer::new(&cuda, &vec![f32::NAN; LENGTH]));
    // Before the mark: compiling takes longer than running.
    let function = kernel(&cuda, "1.f");
    let from = cuda.record().unwrap();
    launch(&cuda, function, &input, &out, 256).unwrap();
    let to = cuda.record().unwrap();
    assert!(out.read().iter().enumerate().all(|(i, x)| *x == 2.0 * i as f32 + 1.0));
    let milliseconds = cuda.elapsed_ms(from, to).unwrap();
    assert!(milliseconds > 0.0 && milliseconds < 1000.0, "{milliseconds}");
    // More than 48 KiB of dynamic shared memory, then back to little, then too much.
    let most = cuda.properties().shared_per_block;
    launch(&cuda, kernel(&cuda, "2.f"), &input, &out, most).unwrap();
    launch(&cuda, kernel(&cuda, "2.f"), &input, &out, 256).unwrap();
    assert_eq!(out.read()[1], 4.0);
    let error = launch(&cuda, kernel(&cuda, "2.f"), &input, &out, most + 4).unwrap_err().to_string();
    assert!(error.contains("shared memory") && error.contains("scale_add"), "{error}");
    // SAFETY: both hold LENGTH floats.
    unsafe {
        cuda.copy(out.1, input.1, LENGTH * 4).unwrap();
        cuda.fill(input.1, 0, LENGTH * 4).unwrap();
    }
    assert_eq!((out.read(), input.read()), (ramp(), vec![0.0; LENGTH]));
}

#[test]
fn every_primitive_does_what_it_does_on_the_emulator() {
    let Some(cuda) = gpu() else { return };
    primitives::all(&cuda);
    if cuda.properties().sm >= 80 {
        tensor_cores::all(&cuda);
    } else {
        eprintln!("NOT RUN: the tensor cores' primitives need compute capability 8.0");
    }
}

#[test]
fn uploads_may_be_dropped_at_once() {
    let Some(cuda) = gpu() else { return };
    // Small ones wrap around the ring of staging memory; the last is larger than a slot.
    for length in [1, 100_000, 200_000, 250_000, 7, 262_144, 1_000_000] {
        let buffers: Vec<Buffer> = (0..6).map(|i| Buffer::new(&cuda, &vec![i as f32; length])).collect();
        for (i, buffer) in buffers.iter().enumerate() {
            assert!(buffer.read().iter().all(|x| *x == i as f32), "{length}");
        }
    }
}

#[test]
fn wrong_launches_are_refused() {
    let Some(cuda) = gpu() else { return };
    let function = kernel(&cuda, "1.f");
    assert_eq!(function, kernel(&cuda, "1.f"));
    assert_ne!(function, kernel(&cuda, "3.f"));
    let good = Launch { grid: [1, 1, 1], block: [64, 1, 1], shared: 256 };
    for launch in [
        Launch { grid: [1, 70_000, 1], ..good },
        Launch { grid: [0, 1, 1], ..good },
        Launch { block: [65, 1, 1], ..good },
    ] {
        let view = [0u8; 32];
        // SAFETY: refused before it starts; a length of 0 would touch nothing.
        let error = unsafe { cuda.launch(function, launch, &[&view, &[0; 8], &[0; 4], &[0; 4]]) };
        assert!(matches!(error, Err(Error::Kernel { .. })), "{launch:?}: {error:?}");
    }
    // SAFETY: a length of 0 touches nothing, where an old driver (before CUDA 12.4) cannot tell the parameters' sizes.
    match unsafe { cuda.launch(function, good, &[&[0; 32], &[0; 8], &[0; 8], &[0; 4]]) } {
        Err(error) => assert!(error.to_string().contains("[32, 8, 4, 4]"), "{error}"),
        Ok(()) => eprintln!("NOT RUN: this driver does not tell the parameters' sizes"),
    }
    assert!(cuda.function(&Module::new(&SOURCE).define("DEFINED", 1), "absent").is_err());
    let (free, total) = cuda.memory().unwrap();
    assert!(free > 0 && free <= total);
    match cuda.alloc(1 << 50) {
        Err(Error::Memory { needed, free, .. }) => assert!(needed == 1 << 50 && free > 0),
        other => panic!("{other:?}"),
    }
    cuda.synchronize().unwrap();
}

#[test]
fn a_capture_is_replayed() {
    let Some(cuda) = gpu() else { return };
    let (input, out) = (Buffer::new(&cuda, &ramp()), Buffer::new(&cuda, &vec![0.0; LENGTH]));
    let function = kernel(&cuda, "1.f");
    assert!(cuda.begin_capture().unwrap());
    // Compiling, loading and allocating beside a capture must not break it.
    let other = kernel(&cuda, "5.f");
    let between = cuda.alloc(LENGTH * 4).unwrap();
    // SAFETY: LENGTH floats each.
    unsafe { cuda.fill(out.1, 0, LENGTH * 4) }.unwrap();
    launch(&cuda, other, &input, &out, 256).unwrap();
    // SAFETY: as above.
    unsafe { cuda.copy(between, out.1, LENGTH * 4) }.unwrap();
    launch(&cuda, function, &Buffer(&cuda, between, 0).leak(), &out, 256).unwrap();
    assert!(cuda.synchronize().is_err(), "nothing can be waited for in a capture");
    let captured = cuda.end_capture().unwrap();
    assert_eq!(out.read(), vec![0.0; LENGTH], "captured, not run");
    for round in 1..4 {
        cuda.replay(captured).unwrap();
        assert!(out.read().iter().enumerate().all(|(i, x)| *x == 2.0 * (2.0 * i as f32 + 5.0) + 1.0), "{round}");
    }
    assert!(cuda.end_capture().is_err());
    // SAFETY: allocated above with this size.
    unsafe { cuda.free(between, LENGTH * 4) };
}

impl Buffer<'_> {
    /// For memory that is freed by hand.
    fn leak(self) -> std::mem::ManuallyDrop<Self> {
        std::mem::ManuallyDrop::new(self)
    }
}

#[test]
fn products_are_row_major_and_full_f32() {
    let Some(cuda) = gpu() else { return };
    let (m, n, k) = (33, 70, 129);
    for (transpose_a, transpose_b, offset) in [(false, false, 0), (false, true, 1), (true, false, 2), (true, true, 3)] {
        let (lda, ldb, ldc) = (if transpose_a { m } else { k } + 3, if transpose_b { k } else { n } + 2, n + 1);
        let value = |i: usize, seed: usize| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.5;
        let a: Vec<f32> = (0..140 * 140).map(|i| value(i, 1)).collect();
        let b: Vec<f32> = (0..140 * 140).map(|i| value(i, 2)).collect();
        let mut expected = vec![f32::NAN; 140 * 140];
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k)
                    .map(|p| {
                        let x = a[offset + if transpose_a { p * lda + i } else { i * lda + p }];
                        let y = b[offset + if transpose_b { j * ldb + p } else { p * ldb + j }];
                        f64::from(x) * f64::from(y)
                    })
                    .sum();
                expected[offset + i * ldc + j] = sum as f32;
            }
        }
        let (a, b, out) =
            (Buffer::new(&cuda, &a), Buffer::new(&cuda, &b), Buffer::new(&cuda, &vec![f32::NAN; 140 * 140]));
        let at = |buffer: &Buffer| buffer.1 + 4 * offset as u64;
        let (a, b, c) = (at(&a), at(&b), at(&out));
        let (factors, product) = (Precision::F32, Precision::F32);
        let product = Matmul { m, n, k, a, lda, transpose_a, b, ldb, transpose_b, c, ldc, beta: 0.0, factors, product };
        for (times, beta) in [(1.0, 0.0), (2.0, 1.0)] {
            // SAFETY: the matrices lie within the buffers.
            if !unsafe { cuda.matmul(&Matmul { beta, ..product }) }.unwrap() {
                eprintln!("NOT RUN: no cuBLASLt here, or none wanted (ATTN_MATMUL)");
                return;
            }
            for (i, (got, expected)) in out.read().iter().zip(&expected).enumerate() {
                // TF32 would be wrong by some 1e-3.
                let close = (got - times * expected).abs() < 2e-5;
                assert!(close || (got.is_nan() && expected.is_nan()), "{product:?} at {i}: {got}, not {expected}");
            }
        }
    }
}

/// Factors in 16 bits, summed in f32; the product in either.
#[test]
fn products_of_16_bits() {
    let Some(cuda) = gpu() else { return };
    let (m, n, k) = (40, 72, 136);
    let stored = |precision: Precision, values: &[f64]| -> Buffer<'_> {
        Buffer::new(&cuda, &bytemuck::pod_collect_to_vec::<u8, f32>(&precision.encode(values)))
    };
    for factors in [Precision::F16, Precision::Bf16] {
        let values = |seed: usize| -> Vec<f64> {
            (0..144 * 144).map(|i| factors.round(((i * 7919 + seed) % 1009) as f64 / 1009.0 - 0.5)).collect()
        };
        let (a, b) = (values(1), values(2));
        let (on_gpu_a, on_gpu_b) = (stored(factors, &a), stored(factors, &b));
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let (lda, ldb, ldc) = (if transpose_a { m } else { k }, if transpose_b { k } else { n }, n);
            let at = |i: usize, j: usize| -> f64 {
                let x = |p: usize| a[if transpose_a { p * lda + i } else { i * lda + p }];
                let y = |p: usize| b[if transpose_b { j * ldb + p } else { p * ldb + j }];
                (0..k).map(|p| x(p) * y(p)).sum()
            };
            for product in [factors, Precision::F32] {
                let c = stored(product, &vec![1.0; m * n]);
                let (a, b, c_at, beta) = (on_gpu_a.1, on_gpu_b.1, c.1, 1.0);
                let matmul =
                    Matmul { m, n, k, a, lda, transpose_a, b, ldb, transpose_b, c: c_at, ldc, beta, factors, product };
                // SAFETY: the matrices lie within the buffers.
                if !unsafe { cuda.matmul(&matmul) }.unwrap() {
                    eprintln!("NOT RUN: no cuBLASLt here, or none wanted (ATTN_MATMUL)");
                    return;
                }
                let got = product.decode(bytemuck::cast_slice(&c.read()));
                // Half a unit of the last place below 8, or what summing in f32 costs.
                let bound = match product {
                    Precision::F16 => 4.0 * 2f64.powi(-11),
                    Precision::Bf16 => 4.0 * 2f64.powi(-8),
                    _ => 2e-5,
                };
                for (i, got) in got.into_iter().enumerate() {
                    let expected = 1.0 + at(i / n, i % n);
                    assert!(
                        expected.abs() < 8.0 && (got - expected).abs() <= bound,
                        "{matmul:?} at {i}: {got}, not {expected}"
                    );
                }
            }
        }
    }
}
