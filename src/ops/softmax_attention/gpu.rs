//! Launches of `kernels/softmax_attention.cu`.

use super::{ENTRY, Extra, SoftmaxAttention};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Module, Source, View};
use crate::op::*;
use crate::ops::attention::{KernelSizes, Sizes};

const ENTRIES: &[&str] =
    &["softmax_attention_forward", "softmax_attention_delta", "softmax_attention_dq", "softmax_attention_dkdv"];

// SAFETY: rows and columns are compared with the sizes before each access; those come from the places themselves, and
// lengths are clamped to the number of keys.
const SOURCE: Source =
    unsafe { Source::new("softmax_attention", include_str!("../../../kernels/softmax_attention.cu"), ENTRIES) };

/// Elements of scratch on a GPU, in forward and in backward.
pub(super) fn scratch(_: &SoftmaxAttention, s: &Sizes) -> (usize, usize) {
    (0, s.batch * s.heads * s.queries) // delta
}

/// What the kernels do not do yet.
fn refuse_features(op: &SoftmaxAttention, gpu: &Gpu) -> Result<()> {
    let features = [
        (op.window.is_some(), "a window"),
        (op.softcap.is_some(), "softcap"),
        (op.dropout.is_some(), "dropout of the weights"),
        (op.weights, "the weights as an output"),
        (op.has(Extra::CuSeqlensQ), "packed sequences"),
        (op.has(Extra::Mask), "a mask"),
        (op.has(Extra::Bias), "a bias"),
        (op.has(Extra::AlibiSlopes), "ALiBi"),
    ];
    match features.iter().find(|(there, _)| *there) {
        None => Ok(()),
        Some((_, feature)) => {
            let problem = format!("`{}` has no kernel with {feature} yet", ENTRY.name);
            Err(Error::device(gpu.name(), problem, "use --device cpu"))
        }
    }
}

/// What a launch needs to know, besides where the tensors lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Launcher {
    /// Sizes.
    pub sizes: Sizes,
    /// Factor of the scores.
    pub scale: f32,
    /// Address of key_lengths, or 0.
    pub lengths: u64,
}

/// Rows and columns of a tile of scores, in `kernels/attention.cuh`.
const TILE: usize = 64;

impl Launcher {
    fn of(op: &SoftmaxAttention, inputs: &[Place]) -> Launcher {
        let specs: Vec<Spec> = inputs[..3].iter().map(|p| Spec { kind: p.kind, shape: p.shape.clone() }).collect();
        let specs: Vec<&Spec> = specs.iter().collect();
        let sizes = Sizes::of(ENTRY.name, &specs, op.causal).expect("checked when recorded");
        let lengths = op.place_of(Extra::KeyLengths).map_or(0, |i| inputs[i].address);
        Launcher { sizes, scale: op.scale(sizes.key_dim) as f32, lengths }
    }

    /// The module whose blocks write slices of `columns`, and a launch over `tiles` × slices.
    fn launch(&self, tiles: usize, columns: usize) -> (Module, Launch) {
        let slice = [16, 32, 64].into_iter().find(|&s| columns <= s).unwrap_or(128);
        // Two chunks of 64 rows of 32 + 4 columns (a tile of weights overlays them), and 64 rows of a slice.
        let shared = 4 * (2 * TILE * 36 + TILE * slice);
        let grid = [tiles as u32, columns.div_ceil(slice) as u32, 1];
        (Module::new(&SOURCE).define("COLUMNS", slice), Launch { grid, block: [256, 1, 1], shared: shared as u32 })
    }

    /// Launches forward.
    pub fn forward(&self, gpu: &Gpu, q: View, k: View, v: View, out: View, lse: u64) -> Result<()> {
        let s = &self.sizes;
        let tiles = s.batch * s.heads * s.queries.div_ceil(TILE);
        let (module, launch) = self.launch(tiles, s.value_dim);
        let sizes = KernelSizes::from(s);
        let arguments: [&dyn crate::gpu::Argument; 8] = [&sizes, &self.scale, &q, &k, &v, &out, &lse, &self.lengths];
        gpu.launch(&module, ENTRIES[0], launch, &arguments)
    }

    /// Launches backward. `delta` is scratch of (B,H,T) elements; absent gradients are [`View::NONE`] or 0.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        gpu: &Gpu,
        [q, k, v, out]: [View; 4],
        lse: u64,
        (d_out, d_lse): (View, u64),
        delta: u64,
        [dq, dk, dv]: [Option<(View, bool)>; 3],
    ) -> Result<()> {
        let s = &self.sizes;
        let sizes = KernelSizes::from(s);
        let rows = s.batch * s.heads * s.queries;
        let warps = Launch { grid: [rows.div_ceil(8) as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        let (module, launch) = self.launch(s.batch * s.heads * s.queries.div_ceil(TILE), s.key_dim);
        gpu.launch(&module, ENTRIES[1], warps, &[&sizes, &out, &d_out, &d_lse, &delta])?;
        if let Some((dq, accumulate)) = dq {
            let accumulate = accumulate as i32;
            gpu.launch(
                &module,
                ENTRIES[2],
                launch,
                &[&sizes, &self.scale, &q, &k, &v, &d_out, &lse, &delta, &dq, &accumulate, &self.lengths],
            )?;
        }
        if dk.is_none() && dv.is_none() {
            return Ok(());
        }
        let tiles = s.batch * s.kv_heads * s.keys.div_ceil(TILE);
        let (module, launch) = self.launch(tiles, s.key_dim.max(s.value_dim));
        let part = |d: Option<(View, bool)>| d.map_or((View::NONE, 0), |(view, accumulate)| (view, accumulate as i32));
        let ((dk, accumulate_dk), (dv, accumulate_dv)) = (part(dk), part(dv));
        gpu.launch(
            &module,
            ENTRIES[3],
            launch,
            &[
                &sizes,
                &self.scale,
                &q,
                &k,
                &v,
                &d_out,
                &lse,
                &delta,
                &dk,
                &accumulate_dk,
                &dv,
                &accumulate_dv,
                &self.lengths,
            ],
        )
    }
}

impl GpuOp for SoftmaxAttention {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        refuse_features(self, gpu)?;
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let out = View::of(&io.outputs[0]);
        Launcher::of(self, &io.inputs).forward(gpu, q, k, v, out, io.outputs[1].address)
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        refuse_features(self, gpu)?;
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let d_out = View::of_option(io.d_outputs[0].as_ref());
        let d_lse = io.d_outputs[1].as_ref().map_or(0, |p| p.address);
        let gradient = |i: usize| io.d_inputs[i].as_ref().map(|g| (View::of(&g.to), g.accumulate));
        Launcher::of(self, &io.inputs).backward(
            gpu,
            [q, k, v, View::of(&io.outputs[0])],
            io.outputs[1].address,
            (d_out, d_lse),
            io.scratch.address,
            [gradient(0), gradient(1), gradient(2)],
        )
    }
}
