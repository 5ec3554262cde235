//! What a model's options promise: whose tokens a loss depends on, and which models are the same.

use attn_engine::cpu::Cpu;
use attn_engine::data::{Batch, IGNORE};
use attn_engine::model::options::sinusoids;
use attn_engine::model::{Gpt, GptConfig, HeadMerge, HeadMerging, Positions};
use attn_engine::ops::reweight_heads::{NormScope, NormWeight};
use attn_engine::{Plan, PlanOptions};
use std::sync::Arc;

const BLOCK: usize = 7;

fn small() -> GptConfig {
    GptConfig { layers: 2, heads: 3, width: 12, block: BLOCK, vocabulary: 9, ..Default::default() }
}

fn merging(merge: HeadMerge, norm_scope: NormScope, norm_weight: NormWeight, redraw: bool) -> GptConfig {
    let head_merging = HeadMerging { merge, norm_scope, norm_weight, shuffle_each_forward: redraw, shuffle_seed: 1 };
    GptConfig { head_merging, ..small() }
}

/// Every way of merging heads.
fn mergings() -> Vec<GptConfig> {
    use {HeadMerge::*, NormScope::*, NormWeight::*};
    let mut all = vec![
        merging(Concat, Prefix, Raw, false),
        merging(Shuffle, Prefix, Raw, false),
        merging(Shuffle, Prefix, Raw, true),
        merging(Shift, Prefix, Raw, false),
    ];
    for scope in [Prefix, Sequence, Batch] {
        all.extend([Raw, Relative].map(|weight| merging(Reweight, scope, weight, false)));
    }
    all
}

/// The other options, one at a time.
fn others() -> Vec<GptConfig> {
    use Positions::*;
    let mut all: Vec<GptConfig> =
        [Sinusoidal, SinusoidalPaired, Rotary, Alibi, None].map(|positions| GptConfig { positions, ..small() }).into();
    for attention in ["linear-attention", "mean-similarity-attention", "softmax-attention,linear-attention"] {
        all.push(GptConfig { attention: attention.split(',').map(String::from).collect(), ..small() });
    }
    all.push(GptConfig { tied: true, inner: Some(20), ..small() });
    all
}

/// A planned loss on f64, with weights large enough that everything matters.
fn planned(config: &GptConfig, rows: usize) -> (Plan, attn_engine::model::Inputs, attn_engine::Tensor) {
    let gpt = Gpt::new(config.clone()).unwrap();
    let recorded = gpt.loss(rows, 0.0).unwrap();
    let options = PlanOptions { roots: vec![recorded.loss], ..Default::default() };
    let plan = Plan::new(recorded.graph, Arc::new(Cpu::<f64>::new(1)), &options).unwrap();
    for t in plan.graph().parameters() {
        let values = gpt.initial(plan.graph(), t, 4);
        let one = values.iter().all(|&x| x == 1.0);
        plan.write(t, &values.iter().map(|x| if one { *x } else { 15.0 * x }).collect::<Vec<_>>()).unwrap();
    }
    (plan, recorded.inputs, recorded.loss)
}

/// Sentences padded to the block; only the targets of `row` before `end` count.
fn batch(sentences: &[&[i32]], row: usize, end: usize) -> Batch {
    let mut batch = Batch::default();
    for (i, sentence) in sentences.iter().enumerate() {
        let last = sentence.len() - 1;
        batch.lengths.push(last as i32);
        for t in 0..BLOCK {
            batch.tokens.push(if t < last { sentence[t] } else { 0 });
            batch.targets.push(if t < last.min(end) && i == row { sentence[t + 1] } else { IGNORE });
        }
    }
    batch
}

fn loss(config: &GptConfig, batch: &Batch) -> f64 {
    let (plan, inputs, loss) = planned(config, batch.lengths.len());
    inputs.write(&plan, batch).unwrap();
    plan.forward().unwrap();
    plan.read(loss).unwrap()[0]
}

const SENTENCES: [&[i32]; 3] = [&[1, 5, 2, 8], &[3, 3, 7, 1, 0, 6, 2, 4], &[6, 2, 2, 5, 1]];

#[test]
fn a_sentence_loses_alone_what_it_does_in_a_batch_unless_norms_go_over_the_batch() {
    for config in mergings().into_iter().chain(others()) {
        for (row, sentence) in SENTENCES.iter().enumerate() {
            let alone = loss(&config, &batch(&[sentence], 0, BLOCK));
            let together = loss(&config, &batch(&SENTENCES, row, BLOCK));
            let of_batch = config.head_merging.norm_scope == NormScope::Batch;
            let difference = (alone - together).abs();
            assert!(if of_batch { difference > 1e-4 } else { difference < 1e-12 }, "{row} {difference:e} {config:?}");
        }
    }
}

#[test]
fn a_later_token_changes_earlier_predictions_only_through_norms_of_later_rows() {
    let mut other = SENTENCES[1].to_vec();
    other[5] = 8;
    for config in mergings().into_iter().chain(others()) {
        // Predictions from the first four tokens; the targets are the same in both.
        let [before, after] = [SENTENCES[1], &other].map(|s| loss(&config, &batch(&[SENTENCES[0], s], 1, 4)));
        let leaks =
            config.head_merging.merge == HeadMerge::Reweight && config.head_merging.norm_scope != NormScope::Prefix;
        let difference = (before - after).abs();
        assert!(if leaks { difference > 1e-4 } else { difference == 0.0 }, "{difference:e} {config:?}");
    }
}

#[test]
fn a_fixed_order_of_heads_is_another_output_projection() {
    let shuffled = merging(HeadMerge::Shuffle, NormScope::Prefix, NormWeight::Raw, false);
    let seeds = [1, 2, 3, 4];
    for seed in seeds {
        let head_merging = HeadMerging { shuffle_seed: seed, ..shuffled.head_merging };
        let (ours, inputs, of_ours) = planned(&GptConfig { head_merging, ..small() }, 1);
        let (plain, plain_inputs, of_plain) = planned(&small(), 1);
        let batch = batch(&[SENTENCES[1]], 0, BLOCK);
        for (plan, inputs) in [(&ours, &inputs), (&plain, &plain_inputs)] {
            inputs.write(plan, &batch).unwrap();
        }
        // Head h meets, at its place, the rows that plain concatenation has for place h.
        let (width, head) = (12, 4);
        for layer in 0..2 {
            let places = Gpt::shuffled(layer).places(3, seed, 0);
            let graph = plain.graph();
            let name = format!("transformer.h.{layer}.attn.c_proj.weight");
            let weight = graph.parameters().into_iter().find(|&t| graph.name(t) == name).unwrap();
            let rows = plain.read(weight).unwrap();
            let permuted: Vec<f64> =
                places.iter().flat_map(|&p| rows[p * head * width..(p + 1) * head * width].to_vec()).collect();
            plain.write(weight, &permuted).unwrap();
        }
        ours.forward().unwrap();
        plain.forward().unwrap();
        let (ours, plain) = (ours.read(of_ours).unwrap()[0], plain.read(of_plain).unwrap()[0]);
        assert!((ours - plain).abs() < 1e-12, "{seed}: {ours} {plain}");
    }
    // Not because all orders were the first.
    assert!(seeds.iter().any(|&seed| Gpt::shuffled(0).places(3, seed, 0) != [0, 1, 2]));
}

#[test]
fn a_new_order_is_drawn_in_each_step_only_where_asked() {
    for redraw in [false, true] {
        let config = merging(HeadMerge::Shuffle, NormScope::Prefix, NormWeight::Raw, redraw);
        let (plan, inputs, loss) = planned(&config, 1);
        inputs.write(&plan, &batch(&[SENTENCES[1]], 0, BLOCK)).unwrap();
        let mut losses: Vec<u64> = (0..12)
            .map(|step| {
                inputs.write_random(&plan, 7, step).unwrap();
                plan.forward().unwrap();
                plan.read(loss).unwrap()[0].to_bits()
            })
            .collect();
        losses.sort();
        losses.dedup();
        assert_eq!(losses.len() > 1, redraw, "{}", losses.len());
    }
}

#[test]
fn sinusoidal_positions_are_learned_ones_with_these_values() {
    for (positions, paired) in [(Positions::Sinusoidal, false), (Positions::SinusoidalPaired, true)] {
        let batch = batch(&[SENTENCES[1]], 0, BLOCK);
        let (learned, inputs, of_learned) = planned(&small(), 1);
        let graph = learned.graph();
        let wpe = graph.parameters().into_iter().find(|&t| graph.name(t).contains("wpe")).unwrap();
        learned.write(wpe, &sinusoids(paired, BLOCK, 12)).unwrap();
        inputs.write(&learned, &batch).unwrap();
        learned.forward().unwrap();
        let fixed = loss(&GptConfig { positions, ..small() }, &batch);
        assert_eq!(learned.read(of_learned).unwrap()[0], fixed, "all other weights are alike, and so is the loss");
    }
}

#[test]
fn a_tied_weight_has_both_gradients() {
    let batch = batch(&SENTENCES, 1, BLOCK);
    let gradients = |tied: bool| {
        let (plan, inputs, _) = planned(&GptConfig { tied, ..small() }, 3);
        let of = |name: &str| plan.graph().parameters().into_iter().find(|&t| plan.graph().name(t) == name);
        let wte = of("transformer.wte.weight").unwrap();
        if let Some(head) = of("lm_head.weight") {
            plan.write(head, &plan.read(wte).unwrap()).unwrap();
        }
        inputs.write(&plan, &batch).unwrap();
        plan.forward().unwrap();
        plan.backward().unwrap();
        let head = of("lm_head.weight").map(|head| plan.read_gradient(head).unwrap());
        (plan.read_gradient(wte).unwrap(), head)
    };
    let ((tied, none), (embedding, head)) = (gradients(true), gradients(false));
    assert!(none.is_none());
    for ((tied, embedding), head) in tied.iter().zip(embedding).zip(head.unwrap()) {
        assert!((tied - embedding - head).abs() < 1e-13);
    }
}

#[test]
fn taps_say_what_each_layer_computed_from() {
    let attention = ["softmax-attention", "linear-attention"].map(String::from).to_vec();
    let gpt = Gpt::new(GptConfig { attention, ..small() }).unwrap();
    let mut graph = attn_engine::Graph::new();
    let tokens = graph.indices("tokens", &[1, 5], 0..9);
    let taps = gpt.hidden(&mut graph, tokens, Default::default()).unwrap().taps;
    let names: Vec<(&str, bool)> = taps.iter().map(|t| (t.attention.as_str(), t.lse.is_some())).collect();
    assert_eq!(names, [("softmax-attention", true), ("linear-attention", false)]);
    assert!(taps.iter().all(|t| [t.q, t.k, t.v, t.out].iter().all(|&x| graph.shape(x) == [1, 3, 5, 4])));
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let list = |names: &str| names.split(',').map(String::from).collect();
    for (config, words) in [
        (
            GptConfig { attention: list("softmax-attention,softmax-attention,softmax-attention"), ..small() },
            "names 3 variants for 2 layers",
        ),
        (GptConfig { attention: list("softmax"), ..small() }, "--attention softmax: is no attention variant"),
        (
            GptConfig { attention: list("linear-attention"), positions: Positions::Alibi, ..small() },
            "--positions alibi: changes scores",
        ),
        (
            GptConfig { heads: 4, positions: Positions::Rotary, ..small() },
            "--positions rotary: turns pairs of columns, and a head has 3",
        ),
        (GptConfig { heads: 5, ..small() }, "does not divide the width 12"),
    ] {
        let error = Gpt::new(config).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
