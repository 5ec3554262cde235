//! out = g(x·W1ᵀ + b1)·W2ᵀ + b2: a hidden layer of H units between x (…,I) and out (…,O); g is tanh, the ReLU or a GELU.
//!
//! Fused where H and O are small ([`fits`]): the hidden layer never leaves the chip. Nothing is saved: backward computes
//! h = g(z), z = x·W1ᵀ + b1, once more, which costs less than to write and read it. Then dW2 = dyᵀ·h, db2 = Σ dy,
//! dz = (dy·W2)·g′(z), dW1 = dzᵀ·x, db1 = Σ dz, dx = dz·W1.
//!
//! Otherwise two [`Linear`] layers, the first with g in its epilogue: at such widths the products take the time, which the
//! library's tiles on tensor cores do faster than a kernel that keeps a row's hidden layer in one warp.

mod cpu;
mod gpu;

use crate::case::Case;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::*;
use crate::ops::Entry;
use crate::ops::linear::{Activation, Linear, WeightLayout};
use crate::ops::rows::*;
use crate::precision::Precision;
use crate::run_spec::{OptionDoc, RunSpec, TensorDoc};

/// Hidden units of the fused op, at most: four for each lane of a warp.
pub const MOST_HIDDEN: usize = 128;
/// Outputs of the fused op, at most; mirrors the kernel's MOST_OUTPUTS.
pub const MOST_OUTPUTS: usize = 32;

/// The fused op, on [x (…,I), W1 (H,I), b1 (H), W2 (O,H), b2 (O)].
#[derive(Debug, Clone, Copy)]
pub struct Ffnn {
    /// What the hidden layer applies to its sums.
    pub activation: Activation,
}

/// Whether widths are small enough for the fused op.
pub fn fits(hidden: usize, outputs: usize) -> bool {
    hidden <= MOST_HIDDEN && outputs <= MOST_OUTPUTS
}

/// Records Linear–g–Linear on x and [W1 (H,I), b1 (H), W2 (O,H), b2 (O)], as nn.Linear stores them: fused where it
/// fits.
///
/// # Errors
/// If a shape does not fit.
pub fn record(g: &mut Graph, x: Tensor, parameters: [Tensor; 4], activation: Activation) -> Result<Tensor> {
    let [weight_1, bias_1, weight_2, bias_2] = parameters;
    let small = matches!(g.shape(weight_2), &[outputs, hidden] if fits(hidden, outputs));
    if small {
        return g.one(Ffnn { activation }, &[x, weight_1, bias_1, weight_2, bias_2]);
    }
    let first = Linear { weight: WeightLayout::OutIn, bias: true, activation: Some(activation) };
    let hidden = g.one(first, &[x, weight_1, bias_1])?;
    g.one(Linear::TORCH, &[hidden, weight_2, bias_2])
}

/// In the registry.
pub static ENTRY: Entry = Entry {
    name: "ffnn",
    summary: "Linear, then tanh, ReLU or GELU, then Linear; fused where widths are small",
    cases,
    run: Some(&RUN),
    attention: None,
};

/// Sizes of the layer.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    hidden: usize,
    outputs: usize,
}

impl Sizes {
    fn of(x: &[usize], weight_2: &[usize]) -> Sizes {
        let (&inputs, rows) = x.split_last().expect("at least one axis");
        Sizes { rows: rows.iter().product(), inputs, hidden: weight_2[1], outputs: weight_2[0] }
    }
}

impl Op for Ffnn {
    fn name(&self) -> &'static str {
        ENTRY.name
    }

    fn contract(&self, inputs: &[&Spec]) -> Result<Contract> {
        expect_inputs(self.name(), inputs, 5, "x, the first weight and bias, the second weight and bias")?;
        let (_, columns) = rows_and_columns(self.name(), "x", inputs[0])?;
        let (outputs, hidden) = match inputs[3].shape[..] {
            [o, h] if inputs[3].kind == Kind::Real && (1..=MOST_OUTPUTS).contains(&o) => match h {
                1..=MOST_HIDDEN => (o, h),
                _ => return Err(self.width("second weight", inputs[3])),
            },
            _ => return Err(self.width("second weight", inputs[3])),
        };
        expect(self.name(), "first weight", inputs[1], Spec::real([hidden, columns]))?;
        expect(self.name(), "first bias", inputs[2], Spec::real([hidden]))?;
        expect(self.name(), "second bias", inputs[4], Spec::real([outputs]))?;
        let mut shape = inputs[0].shape.clone();
        *shape.last_mut().expect("at least one axis") = outputs;
        let s = Sizes::of(&inputs[0].shape, &inputs[3].shape);
        Ok(Contract {
            outputs: vec![Output::real(shape)],
            scratch_backward: gpu::scratch_backward(&s),
            backward_reads_inputs: vec![true, true, true, true, false],
            weights: vec![false, true, true, true, true],
            ..Default::default()
        })
    }

    fn cost(&self, inputs: &[&Spec]) -> Cost {
        let s = Sizes::of(&inputs[0].shape, &inputs[3].shape);
        let (x, y) = ((s.rows * s.inputs) as f64, (s.rows * s.outputs) as f64);
        let (first, second) = (2.0 * x * s.hidden as f64, 2.0 * y * s.hidden as f64);
        let weights = (s.hidden * (s.inputs + 1 + s.outputs) + s.outputs) as f64;
        Cost {
            forward_flops: first + second,
            forward_bytes: 4.0 * (x + y + weights),
            backward_flops: 3.0 * first + 2.0 * second,
            backward_bytes: 4.0 * (2.0 * x + y + 2.0 * weights + 2.0 * (s.rows * s.hidden) as f64),
        }
    }

    fn precisions(&self) -> &'static [Precision] {
        Precision::STORED
    }
}

impl Ffnn {
    fn width(&self, argument: &str, got: &Spec) -> Error {
        let expected = format!("real (O, H) with O from 1 to {MOST_OUTPUTS} and H from 1 to {MOST_HIDDEN}");
        Error::shape(self.name(), argument, expected, got.to_string())
    }
}

static RUN: RunSpec = RunSpec {
    inputs: &[
        TensorDoc { name: "x", shape: "(…,I)", optional: false },
        TensorDoc { name: "0.weight", shape: "(H,I)", optional: false },
        TensorDoc { name: "0.bias", shape: "(H)", optional: false },
        TensorDoc { name: "2.weight", shape: "(O,H)", optional: false },
        TensorDoc { name: "2.bias", shape: "(O)", optional: false },
    ],
    outputs: &[TensorDoc { name: "out", shape: "(…,O)", optional: false }],
    options: &[OptionDoc {
        name: "activation",
        value: Some("tanh|relu|gelu-tanh|gelu-erf"),
        help: "what the hidden layer applies; tanh unless given",
    }],
    record: |run| {
        let activation = match run.options.get("activation").map(String::as_str) {
            None | Some("tanh") => Activation::Tanh,
            Some("relu") => Activation::Relu,
            Some("gelu-tanh") => Activation::GeluTanh,
            Some("gelu-erf") => Activation::GeluErf,
            Some(other) => {
                let argument = format!("--activation {other}");
                return Err(Error::argument(argument, "is unknown", "give tanh, relu, gelu-tanh or gelu-erf"));
            }
        };
        let x = run.real_of_any_shape("x")?;
        let parameters = [
            run.real("0.weight", "(H,I)")?,
            run.real("0.bias", "(H)")?,
            run.real("2.weight", "(O,H)")?,
            run.real("2.bias", "(O)")?,
        ];
        Ok(vec![record(&mut run.graph, x, parameters, activation)?])
    },
};

fn cases() -> Vec<Case> {
    use Activation::{GeluErf, GeluTanh, Relu, Tanh};
    let case = |x: &'static [usize], hidden: usize, outputs: usize, activation| {
        Case::new(format!("{x:?} by {hidden} {activation:?} to {outputs}"), move |g| {
            let inputs = x[x.len() - 1];
            let tensors = [
                g.scaled("0.weight", &[hidden, inputs], (inputs as f64).powf(-0.5)),
                g.normal("0.bias", &[hidden]),
                g.scaled("2.weight", &[outputs, hidden], (hidden as f64).powf(-0.5)),
                g.normal("2.bias", &[outputs]),
            ];
            let x = g.normal("x", x);
            Ok(vec![record(g, x, tensors, activation)?])
        })
    };
    // As for `linear`: sums that are halves of odd integers, so that rounding does not decide on which side of the kink.
    let relu = |rows: usize, inputs: usize, hidden: usize, outputs: usize| {
        Case::new(format!("[{rows}, {inputs}] by {hidden} ReLU to {outputs}"), move |g| {
            let x = |i: usize| if i.is_multiple_of(inputs) { 0.5 } else { (i * 7 % 5) as f64 - 2.0 };
            let w = |i: usize| if i.is_multiple_of(inputs) { 1.0 } else { (i * 11 % 7 % 3) as f64 - 1.0 };
            let x = g.given("x", &[rows, inputs], (0..rows * inputs).map(x).collect());
            let tensors = [
                g.given("0.weight", &[hidden, inputs], (0..hidden * inputs).map(w).collect()),
                g.given("0.bias", &[hidden], (0..hidden).map(|j| (j % 3) as f64 - 1.0).collect()),
                g.scaled("2.weight", &[outputs, hidden], (hidden as f64).powf(-0.5)),
                g.normal("2.bias", &[outputs]),
            ];
            Ok(vec![record(g, x, tensors, Relu)?])
        })
    };
    // Parameters, and one layer twice: the second use's gradients are added to the first's.
    let twice = Case::new("one layer of parameters twice", |g| {
        let x = g.normal("x", &[37, 5]);
        let tensors = [
            g.weight("0.weight", &[20, 5], 0.3),
            g.weight("0.bias", &[20], 0.3),
            g.weight("2.weight", &[5, 20], 0.3),
            g.weight("2.bias", &[5], 0.3),
        ];
        let y = record(g, x, tensors, Tanh)?;
        Ok(vec![record(g, y, tensors, Tanh)?])
    });
    vec![
        case(&[1], 1, 1, Tanh),
        case(&[37, 65], 20, 2, Tanh).in_every_order(),
        case(&[2, 5, 37], 33, 32, GeluTanh),
        case(&[300, 1], 128, 3, GeluErf),
        // More tiles of rows than blocks take at a time.
        case(&[4200, 3], 5, 1, Tanh).large(),
        case(&[0, 37], 20, 2, Tanh),
        // Two layers: too many hidden units, too many outputs.
        case(&[3, 37], 129, 2, Tanh),
        case(&[5, 65], 20, 33, GeluTanh),
        relu(37, 17, 65, 5),
        twice,
    ]
}
