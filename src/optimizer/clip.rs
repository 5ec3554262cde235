//! gradients ← gradients·min(1, max_norm / (norm + 1e-6)), norm = √Σ g² over all of them, as
//! torch.nn.utils.clip_grad_norm_. The norm before clipping is left in hyper\[3\]. A NaN is not hidden.

use super::{AdamW, NORM, Optimizer};
use crate::case::Case;
use crate::cpu::Real;
use crate::error::Result;
use crate::gpu::{Gpu, Launch, Module, Source};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::rows::wide;
use rayon::prelude::*;
use std::sync::Arc;

// SAFETY: indices are compared with the number of gradients; `squares` holds a number for each block of the first
// launch, of which there are at most `UPDATE_SCRATCH`.
const SOURCE: Source = unsafe {
    Source::new(
        "clip_gradient_norm",
        include_str!("../../kernels/clip_gradient_norm.cu"),
        &["gradient_squares", "clip_gradients"],
    )
};

/// The update; its buffers are parameters, gradients, …, hyper.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClipGradientNorm {
    /// The norm that gradients may have.
    pub max_norm: f64,
}

/// In the registry.
pub static ENTRY: Entry =
    Entry { name: "clip-gradient-norm", summary: "gradients scaled down to a norm", cases, run: None, attention: None };

impl Update for ClipGradientNorm {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn update_gpu(&self, gpu: &Gpu, buffers: &[Place]) -> Result<()> {
        let (gradients, hyper) = (&buffers[1], buffers[buffers.len() - 1].address);
        let n = gradients.numel();
        // Two elements a thread, until the blocks are as many as the scratch holds: by then each is busy.
        let blocks = n.div_ceil(512).clamp(1, UPDATE_SCRATCH);
        let launch = Launch { grid: [blocks as u32, 1, 1], block: [256, 1, 1], shared: 0 };
        let (module, norm, squares) = (Module::new(&SOURCE), hyper + 4 * NORM as u64, hyper + 4 * HYPER as u64);
        gpu.launch(&module, "gradient_squares", launch, &[&gradients.address, &(n as i64), &squares])?;
        let (blocks, max_norm) = (blocks as i32, self.max_norm as f32);
        let arguments: &[&dyn crate::gpu::Argument] =
            &[&gradients.address, &(n as i64), &squares, &blocks, &max_norm, &norm];
        gpu.launch(&module, "clip_gradients", launch, arguments)
    }
}

/// Elements that a thread takes at a time.
const BLOCK: usize = 1 << 15;

impl<R: Real> CpuUpdate<R> for ClipGradientNorm {
    fn update_cpu(&self, mut buffers: Vec<&mut [R]>, _: Mode) {
        let hyper = buffers.pop().expect("hyper-parameters come last");
        let gradients = &mut *buffers[1];
        // In f64, with independent sums so that the compiler can vectorise them.
        let squares = |g: &[R]| {
            let mut sums = [0.0f64; 8];
            for g in g.chunks(8) {
                sums.iter_mut().zip(g).for_each(|(sum, g)| *sum += g.to_f64() * g.to_f64());
            }
            sums.into_iter().sum::<f64>()
        };
        let blocks: Vec<f64> = gradients.par_chunks(BLOCK).map(|g| wide!(R, || squares(g))).collect();
        let norm = blocks.into_iter().sum::<f64>().sqrt();
        hyper[NORM] = R::from_f64(norm);
        let scale = self.max_norm / (norm + 1e-6);
        if scale >= 1.0 {
            return;
        }
        let scale = R::from_f64(scale);
        gradients.par_chunks_mut(BLOCK).for_each(|g| g.iter_mut().for_each(|g| *g *= scale));
    }
}

fn cases() -> Vec<Case> {
    let case = |elements: &'static [usize], max_norm: f64| {
        let parameters = Case::new(format!("{elements:?} elements to norm {max_norm}"), move |g| {
            elements.iter().enumerate().map(|(i, &n)| g.trained(&format!("theta{i}"), &[n], i == 0)).collect()
        });
        // The moments show the clipped gradients.
        let updates: Vec<Arc<dyn Update>> = vec![Arc::new(ClipGradientNorm { max_norm }), Arc::new(AdamW::MINGPT)];
        parameters.followed_by(updates, AdamW::MINGPT.state().len(), |t| AdamW::MINGPT.hyper(0.01, t).to_vec())
    };
    vec![
        case(&[1], 0.01),
        case(&[37, 65], 1e6),
        case(&[1000, 2000], 1.0).in_every_order(),
        // More than the blocks take at two elements a thread.
        case(&[600_000], 1.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clipped(max_norm: f64, gradients: &[f64]) -> (Vec<f64>, f64) {
        let (mut g, mut hyper) = (gradients.to_vec(), vec![0.0; HYPER]);
        ClipGradientNorm { max_norm }.update_cpu(vec![&mut [0.0], &mut g, &mut hyper], Mode::Fast);
        (g, hyper[NORM])
    }

    #[test]
    fn scales_only_what_is_too_long() {
        assert_eq!(clipped(10.0, &[3.0, 4.0]), (vec![3.0, 4.0], 5.0));
        let (g, norm) = clipped(1.0, &[3.0, 4.0]);
        assert!((g[0] - 3.0 / 5.000001).abs() < 1e-15 && norm == 5.0);
        assert!(clipped(1.0, &[f64::NAN, 1.0]).0[1].is_nan());
        assert_eq!(clipped(1.0, &[]).1, 0.0);
    }
}
