//! The two ceilings under which a GPU's figures stand, measured on the spot: a large matrix product and a large copy.

use super::measure::normal;
use crate::device::{Device, Memory};
use crate::error::Result;
use crate::graph::Graph;
use crate::io::tensors::Dtype;
use crate::ops::linear::{Linear, WeightLayout};
use crate::plan::{Plan, PlanOptions};
use serde::Serialize;
use std::sync::Arc;

/// Runs of each; the fastest counts, as these are ceilings.
const RUNS: usize = 8;

/// What the device reaches at most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Peaks {
    /// The dtype of the product, as the device holds its tensors: a figure of f32 is below that of the tensor cores.
    pub dtype: &'static str,
    /// TFLOP/s of a large product by the driver's library.
    pub tflops: f64,
    /// GB/s of a large copy, what is read and what is written together.
    pub gbps: f64,
}

/// What a case reaches of each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fractions {
    /// Of the product's TFLOP/s.
    pub of_peak: f64,
    /// Of the copy's GB/s.
    pub of_bandwidth: f64,
}

impl Peaks {
    /// Measures a GPU; `None` for what shares the host's memory, where such ceilings depend on who else is at work.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn of_gpu(device: &Arc<dyn Device>) -> Result<Option<Peaks>> {
        if !device.name().starts_with("cuda") {
            return Ok(None);
        }
        // 0.5 TFLOP in some four waves of tiles; 1 GiB, which no cache holds.
        Peaks::measure(device, [8192, 8192, 4096], 1 << 30).map(Some)
    }

    /// With a product of m×k and k×n, and a copy of so many bytes.
    fn measure(device: &Arc<dyn Device>, [m, n, k]: [usize; 3], bytes: usize) -> Result<Peaks> {
        let fastest = |work: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
            work()?;
            (0..RUNS).try_fold(f64::INFINITY, |least, _| Ok(device.time_ms(work)?.min(least)))
        };
        let product = {
            let mut graph = Graph::new();
            let (x, w) = (graph.input("x", &[m, k]), graph.input("w", &[k, n]));
            let linear = Linear { weight: WeightLayout::InOut, bias: false, activation: None };
            let y = graph.one(linear, &[x, w])?;
            let plan = Plan::new(graph, device.clone(), &PlanOptions { keep: vec![y], ..Default::default() })?;
            // Not zeros: a GPU that multiplies zeros draws less power and clocks higher.
            plan.write(x, &normal(0, m * k, Dtype::F32))?;
            plan.write(w, &normal(1, k * n, Dtype::F32))?;
            fastest(&mut || plan.forward())?
        };
        let copy = {
            let (from, to) = (Memory::new(device.clone(), bytes)?, Memory::new(device.clone(), bytes)?);
            // SAFETY: two allocations of this device, of these bytes, which live until the copies have been waited for.
            unsafe { device.fill(from.address(), 0, bytes)? };
            // SAFETY: as above.
            fastest(&mut || unsafe { device.copy(to.address(), from.address(), bytes) })?
        };
        // Linear layers' products of f32 are full f32, also where attention's may be in TF32.
        let dtype = device.precision().storage().name();
        Ok(Peaks { dtype, tflops: tflops(m, n, k, product), gbps: gbps(bytes, copy) })
    }

    /// Where a case that reaches these figures stands.
    pub fn fractions(&self, tflops: f64, gbps: f64) -> Fractions {
        Fractions { of_peak: tflops / self.tflops, of_bandwidth: gbps / self.gbps }
    }
}

fn tflops(m: usize, n: usize, k: usize, ms: f64) -> f64 {
    2.0 * m as f64 * n as f64 * k as f64 / ms / 1e9
}

fn gbps(bytes: usize, ms: f64) -> f64 {
    2.0 * bytes as f64 / ms / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::gpu::Gpu;
    use crate::gpu::emulator::Emulator;

    #[test]
    fn the_units_are_those_of_the_table() {
        // 2·1000³ operations in 1 ms; 10⁹ bytes read and written in 1 s.
        assert_eq!(tflops(1000, 1000, 1000, 1.0), 2.0);
        assert_eq!(gbps(1_000_000_000, 1000.0), 2.0);
        let peaks = Peaks { dtype: "f32", tflops: 50.0, gbps: 4000.0 };
        assert_eq!(peaks.fractions(5.0, 3000.0), Fractions { of_peak: 0.1, of_bandwidth: 0.75 });
    }

    #[test]
    fn only_a_gpu_is_measured_though_others_could_be() {
        let emulator = Gpu::new("emulator", Arc::new(Emulator::new(Default::default()).expect("a C++ compiler")));
        let devices: [Arc<dyn Device>; 2] = [Arc::new(Cpu::<f32>::new(1)), Arc::new(emulator)];
        for device in devices {
            assert_eq!(Peaks::of_gpu(&device).unwrap(), None);
            let peaks = Peaks::measure(&device, [40, 24, 16], 1 << 16).unwrap();
            assert!(peaks.tflops > 0.0 && peaks.gbps > 0.0 && peaks.dtype == "f32", "{}: {peaks:?}", device.name());
            assert!(peaks.tflops.is_finite() && peaks.gbps.is_finite(), "{}: {peaks:?}", device.name());
        }
    }
}
