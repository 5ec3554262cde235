//! Linear attention one token at a time, as a recurrent network (Katharopoulos et al., "Transformers are RNNs", ICML 2020,
//! eq. 16–20): S ← S + φ(k)vᵀ, z ← z + φ(k), out = φ(q)ᵀS / φ(q)ᵀz, 0 where the denominator is. The state (S, z) stays
//! from run to run, and begins with zeros at position 0: time and memory of a token do not depend on how many came before.
//!
//! Backward reads the state. With d = φ(q)ᵀz, p = φ(q)/d and o = dout·out: dφ(q) = (S·dout − o·z)/d,
//! dφ(k) = p·(dout·v − o), dv = dout·Σ pᵢφ(kᵢ). No gradient flows to the runs before.

use crate::case::Case;
use crate::cpu::{Real, Ref};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Launch, Module, Source, View};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::key_value_cache::expect_position;
use crate::ops::linear_attention::FeatureMap;
use crate::ops::rows::*;

// SAFETY: a block's head is below the number that the launch code takes from the places; rows of q, k, v, out and the
// state are as long as `key_dim` and `value_dim`, which come from the places too.
const SOURCE: Source = unsafe {
    Source::new(
        "linear_attention_step",
        include_str!("../../kernels/linear_attention_step.cu"),
        &["linear_attention_step_forward", "linear_attention_step_backward"],
    )
};

/// One token's [q, k (B,H,1,Dk), v (B,H,1,Dv), strided as they like; position int, one number]: out (B,H,1,Dv), and the state
/// full (B,H,Dk·(Dv+1)), which holds S and then z.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinearAttentionStep {
    /// φ.
    pub feature_map: FeatureMap,
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "linear-attention-step",
    summary: "linear attention of one token, on a state that stays from run to run",
    cases,
    run: None,
    attention: None,
};

impl Op for LinearAttentionStep {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 4, "q, k, v, position")?;
        let (Kind::Real, &[batch, heads, 1, key_dim]) = (inputs[0].kind, &inputs[0].shape[..]) else {
            return Err(Error::shape(self.name(), "q", "real (B, H, 1, Dk)", inputs[0].to_string()));
        };
        expect(self.name(), "k", inputs[1], inputs[0].clone())?;
        let value_dim = inputs[2].shape.last().copied().unwrap_or_default();
        expect(self.name(), "v", inputs[2], Spec::real([batch, heads, 1, value_dim]))?;
        expect_position(self.name(), inputs[3])?;
        Ok(Contract {
            outputs: vec![
                Output {
                    spec: Spec::real([batch, heads, 1, value_dim]),
                    strides: vec![heads * value_dim, value_dim, heads * value_dim, 1],
                },
                Output::full([batch, heads, key_dim * (value_dim + 1)]),
            ],
            persistent_outputs: vec![1],
            constant_outputs: vec![1],
            backward_reads_inputs: vec![true, true, true, false],
            backward_reads_outputs: vec![false, true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let rows = (inputs[0].numel() + inputs[1].numel() + inputs[2].numel()) as f64;
        let state = (inputs[0].numel() * (inputs[2].shape[3] + 1)) as f64;
        Cost {
            forward_flops: 4.0 * state,
            forward_bytes: 8.0 * state + 4.0 * rows,
            backward_flops: 4.0 * state,
            backward_bytes: 4.0 * state + 8.0 * rows,
        }
    }

    fn accepts_strides(&self) -> bool {
        true
    }
}

/// φ of a row.
fn features<R: Real>(map: FeatureMap, x: Ref<R>, b: usize, h: usize) -> Vec<R> {
    x.row(&[b, h, 0]).iter().map(|&x| map.apply(x)).collect()
}

fn dot<R: Real>(x: &[R], y: &[R]) -> R {
    x.iter().zip(y).map(|(&x, &y)| x * y).sum()
}

impl<R: Real> CpuOp<R> for LinearAttentionStep {
    fn forward_cpu(&self, mut io: ForwardCpu<R>, _: Mode) {
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let first = io.inputs[3].ints()[0] == 0;
        let (heads, key_dim, value_dim) = (q.shape[1], q.shape[3], v.shape[3]);
        let states = io.outputs[1].contiguous();
        for (i, state) in states.chunks_exact_mut(key_dim * (value_dim + 1)).enumerate() {
            let (b, h) = (i / heads, i % heads);
            if first {
                state.fill(R::ZERO);
            }
            let (s, z) = state.split_at_mut(key_dim * value_dim);
            let (fq, fk, v) =
                (features(self.feature_map, q, b, h), features(self.feature_map, k, b, h), v.row(&[b, h, 0]));
            add_to(z, &fk, true);
            // SAFETY: one row at a time, on this thread alone.
            let out = unsafe { io.outputs[0].row(&[b, h, 0]) };
            out.fill(R::ZERO);
            for ((s, &fk), &fq) in s.chunks_exact_mut(value_dim).zip(&fk).zip(&fq) {
                s.iter_mut().zip(v).for_each(|(s, &v)| *s += fk * v);
                out.iter_mut().zip(&*s).for_each(|(out, &s)| *out += fq * s);
            }
            let d = dot(&fq, z);
            out.iter_mut().for_each(|out| *out = if d == R::ZERO { R::ZERO } else { *out / d });
        }
    }

    fn backward_cpu(&self, io: BackwardCpu<R>, _: Mode) {
        let Some(d_out) = &io.d_outputs[0] else { return };
        let [q, k, v] = [0, 1, 2].map(|i| io.inputs[i].real());
        let (heads, key_dim, value_dim) = (q.shape[1], q.shape[3], v.shape[3]);
        let (d_out, states) = (d_out.real(), io.outputs[1].all());
        for (i, state) in states.chunks_exact(key_dim * (value_dim + 1)).enumerate() {
            let (b, h) = (i / heads, i % heads);
            let (s, z) = state.split_at(key_dim * value_dim);
            let (fq, fk) = (features(self.feature_map, q, b, h), features(self.feature_map, k, b, h));
            let (v, g) = (v.row(&[b, h, 0]), d_out.row(&[b, h, 0]));
            let rows: Vec<R> = s.chunks_exact(value_dim).map(|s| dot(s, g)).collect(); // S·dout
            let d = dot(&fq, z);
            let inverse = if d == R::ZERO { R::ZERO } else { R::ONE / d };
            let (o, along, weight) = (dot(&fq, &rows) * inverse, dot(g, v), dot(&fq, &fk) * inverse);
            let slope = |f: R| self.feature_map.slope(f);
            let dq: Vec<R> = (0..key_dim).map(|i| (rows[i] - o * z[i]) * inverse * slope(fq[i])).collect();
            let dk: Vec<R> = (0..key_dim).map(|i| fq[i] * inverse * (along - o) * slope(fk[i])).collect();
            let dv: Vec<R> = g.iter().map(|&g| g * weight).collect();
            for (to, d) in io.d_inputs.iter().zip([dq, dk, dv]) {
                if let Some(to) = to {
                    // SAFETY: one row at a time, on this thread alone.
                    add_to(unsafe { to.to.row(&[b, h, 0]) }, &d, to.accumulate);
                }
            }
        }
    }
}

impl LinearAttentionStep {
    fn launch(&self, gpu: &Gpu, entry: &str, q: &Place, arguments: &[&dyn crate::gpu::Argument]) -> Result<()> {
        let map = FeatureMap::ALL.iter().position(|&m| m == self.feature_map).expect("listed");
        let launch = Launch { grid: [(q.shape[0] * q.shape[1]) as u32, 1, 1], block: [128, 1, 1], shared: 0 };
        gpu.launch(&Module::new(&SOURCE).define("FEATURE_MAP", map), entry, launch, arguments)
    }
}

impl GpuOp for LinearAttentionStep {
    fn forward_gpu(&self, gpu: &Gpu, io: &ForwardGpu) -> Result<()> {
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let [heads, key_dim, value_dim] =
            [io.inputs[0].shape[1], io.inputs[0].shape[3], io.inputs[2].shape[3]].map(|n| n as i32);
        let (out, position, states) = (View::of(&io.outputs[0]), io.inputs[3].address, io.outputs[1].address);
        self.launch(
            gpu,
            "linear_attention_step_forward",
            &io.inputs[0],
            &[&q, &k, &v, &position, &out, &states, &heads, &key_dim, &value_dim],
        )
    }

    fn backward_gpu(&self, gpu: &Gpu, io: &BackwardGpu) -> Result<()> {
        let Some(d_out) = &io.d_outputs[0] else { return Ok(()) };
        let [q, k, v] = [0, 1, 2].map(|i| View::of(&io.inputs[i]));
        let [heads, key_dim, value_dim] =
            [io.inputs[0].shape[1], io.inputs[0].shape[3], io.inputs[2].shape[3]].map(|n| n as i32);
        let to = |i: usize| {
            let d: Option<&Gradient<Place>> = io.d_inputs[i].as_ref();
            (View::of_option(d.map(|d| &d.to)), d.is_some_and(|d| d.accumulate) as i32)
        };
        let [(dq, add_q), (dk, add_k), (dv, add_v)] = [0, 1, 2].map(to);
        let (states, g) = (io.outputs[1].address, View::of(d_out));
        self.launch(
            gpu,
            "linear_attention_step_backward",
            &io.inputs[0],
            &[&q, &k, &v, &states, &g, &dq, &add_q, &dk, &add_k, &dv, &add_v, &heads, &key_dim, &value_dim],
        )
    }
}

fn cases() -> Vec<Case> {
    let case = |[batch, heads, key_dim, value_dim]: [usize; 4], feature_map: FeatureMap| {
        Case::new(format!("{batch}×{heads}, {key_dim} and {value_dim} columns, {feature_map}"), move |g| {
            let (q, k) = (g.normal("q", &[batch, heads, 1, key_dim]), g.normal("k", &[batch, heads, 1, key_dim]));
            let v = g.normal("v", &[batch, heads, 1, value_dim]);
            let position = g.ints("position", &[1], 0..9, vec![0]);
            g.record(LinearAttentionStep { feature_map }, &[q, k, v, position])
        })
    };
    // Parts of one projection, in place.
    let packed = Case::new("packed", |g| {
        let packed = g.normal("packed", &[2, 1, 3 * 3 * 5]);
        let position = g.ints("position", &[1, 1], 0..9, vec![0]);
        let [q, k, v] = [0, 1, 2].map(|part| g.heads(packed, part * 15..(part + 1) * 15, 3));
        g.record(LinearAttentionStep::default(), &[q?, k?, v?, position])
    });
    vec![
        case([1, 1, 1, 1], FeatureMap::Elu1),
        case([2, 3, 4, 3], FeatureMap::Relu),
        case([2, 3, 37, 65], FeatureMap::Elu1).in_every_order(),
        case([1, 2, 130, 200], FeatureMap::Relu).in_every_order(),
        packed,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::device::Device;
    use crate::gpu::emulator::{Emulator, EmulatorOptions};
    use crate::graph::Graph;
    use crate::ops::linear_attention::LinearAttention;
    use crate::philox::Philox;
    use crate::plan::{Plan, PlanOptions};
    use std::sync::Arc;

    /// Token by token it gives what causal linear attention gives of all at once; and again after a new beginning.
    #[test]
    fn steps_are_causal_linear_attention() {
        const HEADS: usize = 2;
        const LENGTH: usize = 7;
        const KEY: usize = 3;
        const VALUE: usize = 5;
        let emulator = Emulator::new(EmulatorOptions { threads: 2, ..Default::default() }).unwrap();
        let emulator: Arc<dyn Device> = Arc::new(Gpu::new("emulator", Arc::new(emulator)));
        for (device, bound) in [(Arc::new(Cpu::<f64>::new(1)) as Arc<dyn Device>, 1e-12), (emulator, 1e-5)] {
            let mut g = Graph::new();
            let shapes = [KEY, KEY, VALUE].map(|d| [1, HEADS, LENGTH, d]);
            let inputs = [0, 1, 2].map(|i| g.input("qkv", &shapes[i]));
            let all = g.one(LinearAttention { causal: true, ..Default::default() }, &inputs).unwrap();
            let steps = [KEY, KEY, VALUE].map(|d| g.input("step", &[1, HEADS, 1, d]));
            let position = g.indices("position", &[1], 0..LENGTH as i64);
            let one = g.one(LinearAttentionStep::default(), &[steps[0], steps[1], steps[2], position]).unwrap();
            let options = PlanOptions { keep: vec![all, one], poison: true, ..Default::default() };
            let plan = Plan::new(g, device, &options).unwrap();
            let values = [0, 1, 2].map(|i| {
                let random = Philox::new(1, i as u32, 0);
                (0..shapes[i].iter().product::<usize>() as u64).map(|e| random.normal(e)).collect::<Vec<f64>>()
            });
            (0..3).for_each(|i| plan.write(inputs[i], &values[i]).unwrap());
            for t in (0..LENGTH).chain(0..2) {
                for i in 0..3 {
                    let d = shapes[i][3];
                    let of_head = |h: usize| &values[i][(h * LENGTH + t) * d..][..d];
                    plan.write(steps[i], &(0..HEADS).flat_map(of_head).copied().collect::<Vec<f64>>()).unwrap();
                }
                plan.write_indices(position, &[t as i32]).unwrap();
                plan.forward().unwrap();
                let (all, one) = (plan.read(all).unwrap(), plan.read(one).unwrap());
                for h in 0..HEADS {
                    let expected = &all[(h * LENGTH + t) * VALUE..][..VALUE];
                    let got = &one[h * VALUE..][..VALUE];
                    assert!(got.iter().zip(expected).all(|(x, e)| (x - e).abs() < bound), "{t}: {got:?} {expected:?}");
                }
            }
        }
    }
}
