//! What each layer attends to: the attention weights of one text, layer by layer and head by head.
//!
//! Softmax attention gives its weights itself: a kernel recovers them from q, k and lse. Of any other variant they are
//! implied, for its output is linear in v: outₜ = Σₛ wₜₛ·vₛ. So the variant itself is run again on the identity in place
//! of v, where outₜ is row t of the weights: φ(qₜ)·φ(kₛ)/dₜ for linear attention. What is shown is thus what the
//! kernels compute, not a formula beside them, and a variant that is added to the registry can be looked into at once.

use super::Gpt;
use super::gpt::Tap;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::Spec;
use crate::ops::OPS;
use crate::ops::linear_attention::{self, LinearAttention};
use crate::ops::softmax_attention::{self, Extra, SoftmaxAttention};
use crate::plan::{Plan, PlanOptions};
use std::sync::Arc;

/// A model planned forward only, up to its layers' attention weights.
pub struct Look {
    plan: Plan,
    tokens: Tensor,
    /// One a layer: (1,H,T,T).
    weights: Vec<Tensor>,
}

/// Weights of a layer's heads: by head, query and key. Row t sums to 1, and is 0 past key t.
pub type Heads = Vec<Vec<Vec<f64>>>;

impl Look {
    /// Plans texts of `length` tokens.
    ///
    /// # Errors
    /// If the length is 0 or above the model's block, or the device has too little memory.
    pub fn new(gpt: &Gpt, length: usize, device: Arc<dyn Device>) -> Result<Look> {
        let block = gpt.config().block;
        if !(1..=block).contains(&length) {
            let problem = format!("has {length} tokens, and the model sees 1 to {block} at once");
            return Err(Error::argument("the text", problem, "give a text of that length"));
        }
        let mut g = Graph::new();
        let tokens = g.indices("tokens", &[1, length], 0..gpt.config().vocabulary as i64);
        let conditions = gpt.conditions(&mut g, [1, length], Default::default());
        let taps = gpt.hidden(&mut g, tokens, conditions)?.taps;
        let weights = taps.iter().map(|tap| weights(&mut g, gpt, tap)).collect::<Result<Vec<_>>>()?;
        let options = PlanOptions { keep: weights.clone(), ..Default::default() };
        Ok(Look { plan: Plan::new(g, device, &options)?, tokens, weights })
    }

    /// The plan, whose parameters are to be written.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The weights of every layer for these tokens.
    ///
    /// # Errors
    /// If there are more or fewer tokens than planned, one is unknown, or the model's numbers are not finite.
    pub fn run(&self, tokens: &[i32]) -> Result<Vec<Heads>> {
        self.plan.write_indices(self.tokens, tokens)?;
        self.plan.forward()?;
        let n = tokens.len();
        let layer = |&t: &Tensor| {
            let values = self.plan.read(t)?;
            if values.iter().any(|x| !x.is_finite()) {
                let remedy = "use another checkpoint";
                return Err(Error::argument("the model", "gives attention weights that are not finite", remedy));
            }
            Ok(values.chunks(n * n).map(|head| head.chunks(n).map(Vec::from).collect()).collect())
        };
        self.weights.iter().map(layer).collect()
    }
}

/// The weights (1,H,T,T) of a layer's attention.
fn weights(g: &mut Graph, gpt: &Gpt, tap: &Tap) -> Result<Tensor> {
    let Tap { q, k, v, .. } = *tap;
    if tap.attention == softmax_attention::ENTRY.name {
        let mut op = SoftmaxAttention { weights: true, ..SoftmaxAttention::causal(true) };
        let mut inputs = vec![q, k, v];
        if let Some(slopes) = tap.slopes {
            op = op.with(Extra::AlibiSlopes);
            inputs.push(slopes);
        }
        return Ok(g.record(op, &inputs)?[2]);
    }
    let [batch, heads, length, _] = g.shape(v)[..] else { unreachable!("values are (B,H,T,D)") };
    let numel = batch * heads * length * length;
    let one = |i: usize| (i / length % length == i % length) as u8 as f64;
    let spec = Spec::real([batch, heads, length, length]);
    let identity = g.constant("identity", spec, (0..numel).map(one).collect());
    if tap.attention == linear_attention::ENTRY.name {
        let op = LinearAttention { causal: true, feature_map: gpt.config().feature_map };
        return g.one(op, &[q, k, identity]);
    }
    let record = OPS.iter().find(|e| e.name == tap.attention).and_then(|e| e.attention);
    record.expect("checked by Gpt::new")(g, q, k, identity, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::model::{GptConfig, Positions};
    use crate::ops::linear_attention::FeatureMap;

    /// Weights by their definition, from q and k of one head (T,D).
    fn defined(attention: &str, map: FeatureMap, slope: f64, q: &[f64], k: &[f64], d: usize) -> Vec<Vec<f64>> {
        let rows: Vec<(&[f64], &[f64])> = q.chunks(d).zip(k.chunks(d)).collect();
        let mean = |x: &[f64]| x.iter().sum::<f64>() / d as f64;
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let feature = |x: &[f64]| x.iter().map(|&x| map.apply(x)).collect::<Vec<f64>>();
        let one = |t: usize, s: usize| match attention {
            _ if s > t => 0.0,
            "softmax-attention" => (dot(rows[t].0, rows[s].1) / (d as f64).sqrt() - slope * (t - s) as f64).exp(),
            "linear-attention" => dot(&feature(rows[t].0), &feature(rows[s].1)),
            "mean-similarity-attention" => (mean(rows[t].0) * mean(rows[s].1)).exp(),
            other => panic!("{other} has no definition here"),
        };
        let row = |t: usize| {
            let all: Vec<f64> = (0..rows.len()).map(|s| one(t, s)).collect();
            let sum: f64 = all.iter().sum();
            all.iter().map(|x| x / sum).collect()
        };
        (0..rows.len()).map(row).collect()
    }

    #[test]
    fn every_variants_weights_are_those_of_its_definition_and_sum_to_1() {
        let (layers, heads, width, length) = (2, 2, 12, 7);
        let shape = GptConfig { layers, heads, width, block: 9, vocabulary: 5, ..Default::default() };
        let plain = |attention: &str| GptConfig { attention: vec![attention.into()], ..shape.clone() };
        let rotary = |attention: &str| GptConfig { positions: Positions::Rotary, ..plain(attention) };
        for config in [
            plain("softmax-attention"),
            rotary("softmax-attention"),
            GptConfig { positions: Positions::Alibi, ..plain("softmax-attention") },
            rotary("linear-attention"),
            GptConfig { feature_map: FeatureMap::Elu1, ..plain("linear-attention") },
            plain("mean-similarity-attention"),
            GptConfig { attention: vec!["linear-attention".into(), "softmax-attention".into()], ..shape.clone() },
        ] {
            let gpt = Gpt::new(config.clone()).unwrap();
            let tokens = [3, 1, 4, 1, 0, 2, 2];
            let look = Look::new(&gpt, length, Arc::new(Cpu::<f64>::new(1))).unwrap();
            // The same model once more, to read what its layers computed from.
            let mut g = Graph::new();
            let input = g.indices("tokens", &[1, length], 0..5);
            let conditions = gpt.conditions(&mut g, [1, length], Default::default());
            let taps = gpt.hidden(&mut g, input, conditions).unwrap().taps;
            let packed: Vec<Tensor> = taps.iter().flat_map(|t| [t.q, t.k]).map(|t| g.part(t).0).collect();
            let slopes: Vec<Tensor> = taps.iter().filter_map(|t| t.slopes).collect();
            let options = PlanOptions { keep: packed, ..Default::default() };
            let plan = Plan::new(g, Arc::new(Cpu::<f64>::new(1)), &options).unwrap();
            // Weights large enough that attention is uneven.
            for plan in [&plan, look.plan()] {
                for t in plan.graph().parameters() {
                    let values: Vec<f64> = gpt.initial(plan.graph(), t, 1).iter().map(|x| 10.0 * x).collect();
                    plan.write(t, &values).unwrap();
                }
            }
            plan.write_indices(input, &tokens).unwrap();
            plan.forward().unwrap();
            let found = look.run(&tokens).unwrap();
            assert_eq!((found.len(), found[0].len(), found[0][0].len()), (layers, heads, length));
            let slopes = slopes.first().map_or(vec![0.0; heads], |&t| plan.read(t).unwrap());
            for (layer, tap) in taps.iter().enumerate() {
                let (q, k) = (plan.read(tap.q).unwrap(), plan.read(tap.k).unwrap());
                let d = width / heads;
                for head in 0..heads {
                    let part = head * length * d..(head + 1) * length * d;
                    let expected = defined(
                        config.attention_of(layer),
                        config.feature_map,
                        slopes[head],
                        &q[part.clone()],
                        &k[part],
                        d,
                    );
                    for (t, (found, expected)) in found[layer][head].iter().zip(&expected).enumerate() {
                        let near = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-10);
                        assert!(near, "{:?}, layer {layer}, head {head}, query {t}", config.attention);
                        assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-10);
                        assert!(found[t + 1..].iter().all(|&x| x == 0.0));
                    }
                    // Not the even weights that any definition would give to zeros.
                    assert!((found[layer][head][6][0] - 1.0 / 7.0).abs() > 1e-4, "{:?}", config.attention);
                }
            }
        }
    }

    #[test]
    fn a_text_beyond_the_block_is_an_error() {
        let gpt = Gpt::new(GptConfig { block: 4, vocabulary: 3, ..Default::default() }).unwrap();
        for length in [0, 5] {
            let Err(error) = Look::new(&gpt, length, Arc::new(Cpu::<f32>::new(1))) else { panic!("{length} fits") };
            assert!(error.to_string().contains(&format!("has {length} tokens, and the model sees 1 to 4 at once")));
        }
    }
}
