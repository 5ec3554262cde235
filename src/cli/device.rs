//! `--device` and `--threads`: which device a command computes on.

use crate::cpu::Cpu;
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::gpu::cuda::{Cuda, devices};
use crate::gpu::emulator::{Emulator, EmulatorOptions};
use crate::graph::Graph;
use crate::io::tensors::Dtype;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What `--device` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// A CUDA GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU implementations.
    Cpu,
    /// The kernels, executed on the CPU.
    Emulator,
    /// The kernels, on the GPU of this number.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "emulator" => Ok(Choice::Emulator),
            "cuda" => Ok(Choice::Cuda(0)),
            _ => (text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Choice::Cuda))
                .ok_or_else(|| "give auto, cpu, emulator, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Choice::Auto => f.write_str("auto"),
            Choice::Cpu => f.write_str("cpu"),
            Choice::Emulator => f.write_str("emulator"),
            Choice::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// The flags of every command that computes.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, emulator, cuda or cuda:N [auto: a GPU if there is one, else the CPU]
    #[arg(long, default_value_t = Choice::Auto, hide_default_value = true, value_name = "DEVICE")]
    pub device: Choice,
    /// Threads on the CPU [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl DeviceArgs {
    /// Opens the device; see [`open`].
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(&self, precision: Precision) -> Result<Arc<dyn Device>> {
        open(self.device, precision, self.threads.map_or(0, usize::from))
    }
}

/// What a device shall store for `--dtype` and `--tf32`.
///
/// # Errors
/// If both are given and `--dtype` is not f32.
pub fn stored(dtype: Dtype, tf32: bool) -> Result<Precision> {
    match (tf32, dtype) {
        (false, _) => Ok(dtype.precision()),
        (true, Dtype::F32) => Ok(Precision::Tf32),
        (true, _) => {
            let problem = format!("is for f32 tensors, and these are {}", dtype.name());
            Err(Error::argument("--tf32", problem, "add --dtype f32, or leave --tf32 out"))
        }
    }
}

/// Whether `--tf32` means anything to this graph on this device.
///
/// # Errors
/// If it does not.
pub fn check_tf32(graph: &Graph, device: &dyn Device) -> Result<()> {
    if device.precision() != Precision::Tf32 {
        let problem = format!("is for a GPU, and this is {}", device.name());
        return Err(Error::argument("--tf32", problem, "use --device cuda or emulator, or leave it out"));
    }
    if !graph.nodes.iter().any(|n| n.op.precisions().contains(&Precision::Tf32)) {
        return Err(Error::argument(
            "--tf32",
            "is for products that can be in TF32, and there are none",
            "leave it out",
        ));
    }
    Ok(())
}

/// Opens a device. `threads` (0: one a core) counts on the CPU only. The CPU has no 16-bit storage: it computes in f32,
/// and who asked for f16 or bf16 rounds what goes in and comes out ([`Device::precision`] tells).
///
/// # Errors
/// If it is not here, or has no arithmetic of this precision: with the remedy and the next best device.
pub fn open(choice: Choice, precision: Precision, threads: usize) -> Result<Arc<dyn Device>> {
    if precision == Precision::F64 && !matches!(choice, Choice::Auto | Choice::Cpu) {
        let (problem, remedy) = ("has no f64 arithmetic", "use --device cpu, or --dtype f32");
        return Err(Error::device(choice.to_string(), problem, remedy));
    }
    match choice {
        Choice::Cpu => Ok(cpu(precision, threads)),
        // Half a GPU (no compiler, no memory) is for the user to decide about, so only a missing one leads to the CPU.
        Choice::Auto if precision == Precision::F64 || devices().is_err() => Ok(cpu(precision, threads)),
        Choice::Auto => open(Choice::Cuda(0), precision, threads),
        Choice::Cuda(n) => Ok(Arc::new(Gpu::storing(precision, choice.to_string(), Arc::new(Cuda::new(n)?)))),
        Choice::Emulator => {
            let options = EmulatorOptions { threads, ..Default::default() };
            Ok(Arc::new(Gpu::storing(precision, "emulator", Arc::new(Emulator::new(options)?))))
        }
    }
}

fn cpu(precision: Precision, threads: usize) -> Arc<dyn Device> {
    match precision {
        Precision::F64 => Arc::new(Cpu::<f64>::new(threads)),
        _ => Arc::new(Cpu::<f32>::new(threads)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_shown() {
        for text in ["auto", "cpu", "emulator", "cuda:3"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            assert!(text.parse::<Choice>().is_err(), "{text}");
        }
    }
}
