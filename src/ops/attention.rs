//! What all attention variants share: shapes, which keys a query sees, the output's layout, their tensors in
//! `attn run`, and their validation cases.
//!
//! Key s is visible to query t iff (not causal, or s ≤ t + S − T) and s < key_lengths\[b\]. Alignment is bottom-right
//! and uses the padded S. Query head h reads key/value head ⌊h·Hk/H⌋.

use crate::case::Case;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Kind, Output, Spec};
use crate::run_spec::{OptionDoc, RunGraph, TensorDoc};
use bytemuck::{Pod, Zeroable};

/// `Sizes` of `kernels/softmax_attention.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct KernelSizes([i32; 8]);

impl From<&Sizes> for KernelSizes {
    fn from(s: &Sizes) -> Self {
        let sizes = [s.batch, s.heads, s.kv_heads, s.queries, s.keys, s.key_dim, s.value_dim, s.causal as usize];
        KernelSizes(sizes.map(|x| x as i32))
    }
}

/// Sizes of q (B,H,T,Dk), k (B,Hk,S,Dk), v (B,Hk,S,Dv).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// B.
    pub batch: usize,
    /// H, query heads.
    pub heads: usize,
    /// Hk, key and value heads; divides H.
    pub kv_heads: usize,
    /// T.
    pub queries: usize,
    /// S.
    pub keys: usize,
    /// Dk.
    pub key_dim: usize,
    /// Dv.
    pub value_dim: usize,
    /// Whether the mask is causal.
    pub causal: bool,
}

impl Sizes {
    /// Checks [q, k, v] or [q, k, v, key_lengths] and reads their sizes.
    ///
    /// # Errors
    /// Naming the op and the argument that does not fit. T, S and B may be 0; heads and head sizes may not.
    pub fn of(op: &str, inputs: &[&Spec], causal: bool) -> Result<Sizes> {
        let names = ["q", "k", "v"];
        if !(3..=4).contains(&inputs.len()) {
            return Err(Error::shape(
                op,
                "inputs",
                "q, k, v and perhaps key_lengths",
                format!("{} tensors", inputs.len()),
            ));
        }
        let axes = |i: usize| -> Result<[usize; 4]> {
            let fits = inputs[i].kind == Kind::Real;
            let shape = inputs[i].shape.clone().try_into().ok().filter(|_| fits);
            shape.ok_or_else(|| Error::shape(op, names[i], "real (B, H, T, D)", inputs[i].to_string()))
        };
        let ([batch, heads, queries, key_dim], [kb, kv_heads, keys, kd], [vb, vh, vs, value_dim]) =
            (axes(0)?, axes(1)?, axes(2)?);
        let check = |ok: bool, i: usize, expected: String| {
            if ok { Ok(()) } else { Err(Error::shape(op, names[i], expected, inputs[i].to_string())) }
        };
        check(heads > 0 && key_dim > 0, 0, "at least one head and one column".into())?;
        check(kb == batch && kd == key_dim, 1, format!("real ({batch}, Hk, S, {key_dim}) as q has"))?;
        check(
            kv_heads > 0 && heads.is_multiple_of(kv_heads),
            1,
            format!("a number of heads that divides q's {heads}"),
        )?;
        check(
            vb == batch && vh == kv_heads && vs == keys && value_dim > 0,
            2,
            format!("real ({batch}, {kv_heads}, {keys}, Dv) as k has"),
        )?;
        if let Some(lengths) = inputs.get(3)
            && (lengths.kind != Kind::Int || lengths.shape != [batch])
        {
            return Err(Error::shape(op, "key_lengths", format!("int ({batch})"), lengths.to_string()));
        }
        Ok(Sizes { batch, heads, kv_heads, queries, keys, key_dim, value_dim, causal })
    }

    /// Query heads that read one key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// How many keys, from the first on, query `t` sees where the batch has `length` keys.
    pub fn visible(&self, t: usize, length: usize) -> usize {
        let keys = length.min(self.keys);
        if self.causal { keys.min((t + 1 + self.keys).saturating_sub(self.queries)) } else { keys }
    }

    /// The length of batch `b`, from the optional key_lengths.
    pub fn length(&self, lengths: Option<&[i32]>, b: usize) -> usize {
        lengths.map_or(self.keys, |l| l[b] as usize)
    }

    /// The output (B,H,T,Dv), stored as (B,T,H,Dv), so that merging heads costs nothing.
    pub fn output(&self) -> Output {
        let (h, t, d) = (self.heads, self.queries, self.value_dim);
        Output { spec: Spec::real([self.batch, h, t, d]), strides: vec![t * h * d, d, h * d, 1] }
    }

    /// Visible pairs of a query and a key, all heads counted, where no length is given.
    pub fn pairs(&self) -> f64 {
        let per_head: f64 = if self.causal {
            (0..self.queries).map(|t| self.visible(t, self.keys) as f64).sum()
        } else {
            self.queries as f64 * self.keys as f64
        };
        per_head * (self.batch * self.heads) as f64
    }

    /// Bytes of q, k, v, out at 4 bytes an element, each moved once.
    pub fn bytes(&self) -> f64 {
        let q = self.batch * self.heads * self.queries * (self.key_dim + self.value_dim);
        let k = self.batch * self.kv_heads * self.keys * (self.key_dim + self.value_dim);
        4.0 * (q + k) as f64
    }
}

const QKV: [TensorDoc; 4] = [
    TensorDoc { name: "q", shape: "(B,H,T,Dk)", optional: false },
    TensorDoc { name: "k", shape: "(B,Hk,S,Dk)", optional: false },
    TensorDoc { name: "v", shape: "(B,Hk,S,Dv)", optional: false },
    TensorDoc { name: "key_lengths", shape: "(B)", optional: true },
];

/// q, k, v and perhaps key_lengths of a user's file, for every attention variant.
pub(crate) fn bind(run: &mut RunGraph) -> Result<Vec<Tensor>> {
    let mut inputs = Vec::new();
    for doc in &QKV[..3] {
        inputs.push(run.real(doc.name, doc.shape)?);
    }
    if run.has("key_lengths") {
        let (batch, keys) = (run.graph.shape(inputs[1])[0], run.graph.shape(inputs[1])[2]);
        inputs.push(run.ints("key_lengths", &[batch], 0..keys as i64 + 1)?);
    }
    Ok(inputs)
}

/// What every attention variant takes.
pub(crate) const ATTENTION_INPUTS: &[TensorDoc] = &QKV;
/// `--causal`.
pub(crate) const CAUSAL: OptionDoc =
    OptionDoc { name: "causal", value: None, help: "query t sees key s only if s ≤ t + S − T (bottom-right)" };
/// `--scale X`.
pub(crate) const SCALE: OptionDoc = OptionDoc { name: "scale", value: Some("X"), help: "factor of the scores" };

/// Shapes of an attention case, shared by the variants: sizes of q, k, v.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// B, H, Hk.
    pub heads: (usize, usize, usize),
    /// T, S.
    pub lengths: (usize, usize),
    /// Dk, Dv.
    pub dims: (usize, usize),
}

/// A case on standard normal q, k, v: `key_lengths` are given where not empty.
pub(crate) fn attention_case(
    shape: Shape,
    causal: bool,
    key_lengths: &'static [i32],
    record: impl Fn(&mut Graph, &[Tensor]) -> Result<Vec<Tensor>> + Send + Sync + 'static,
) -> Case {
    let Shape { heads: (b, h, hk), lengths: (t, s), dims: (dk, dv) } = shape;
    let mut name = format!("B{b} H{h}");
    if hk != h {
        name += &format!("/{hk}");
    }
    name += &format!(" T{t}");
    if s != t {
        name += &format!("×{s}");
    }
    name += &format!(" D{dk}");
    if dv != dk {
        name += &format!("×{dv}");
    }
    name += if causal { " causal" } else { "" };
    if !key_lengths.is_empty() {
        name += &format!(" lengths {key_lengths:?}");
    }
    Case::new(name, move |g| {
        let mut inputs =
            vec![g.normal("q", &[b, h, t, dk]), g.normal("k", &[b, hk, s, dk]), g.normal("v", &[b, hk, s, dv])];
        if !key_lengths.is_empty() {
            inputs.push(g.ints("key_lengths", &[b], 0..s as i64 + 1, key_lengths.to_vec()));
        }
        record(g, &inputs)
    })
}
