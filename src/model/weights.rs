//! Parameters in files: ours, Hugging Face's GPT-2 (one safetensors file or several with an index), and minGPT's state dicts.
//!
//! All have the same names. GPT-2's Conv1D stores a block's weights (in, out), as we do; minGPT's nn.Linear (out, in): such
//! weights are transposed as they are read. Names may lack `transformer.`, as those of some published files do.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::io::pytorch;
use crate::plan::Plan;
use crate::run_spec::Given;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The head's weight, where it is none of the others.
pub const HEAD: &str = "lm_head.weight";
/// The token embedding.
pub const EMBEDDING: &str = "transformer.wte.weight";
/// Weights in one file.
pub const MODEL: &str = "model.safetensors";
/// Which of several files holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";
/// How the names of those weights end that Conv1D stores (in, out) and nn.Linear (out, in).
pub const TRANSPOSED: [&str; 4] =
    [".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"];

/// A tensor of a file: its sizes, and its values in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    /// Sizes, slowest axis first.
    pub shape: Vec<usize>,
    /// Values, widened.
    pub values: Vec<f64>,
}

/// All floating-point tensors of a safetensors file.
///
/// # Errors
/// If the file cannot be read, is truncated, or its header does not fit its data.
pub fn read(path: &Path) -> Result<BTreeMap<String, Values>> {
    let bytes = std::fs::read(path)
        .map_err(|e| Error::file(path, format!("cannot be read: {e}"), "give a directory that holds this file"))?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::file(path, format!("is no valid safetensors file: {e}"), "copy or save it again"))?;
    Ok(tensors.iter().filter_map(|(name, view)| Some((name.to_string(), widen(&view)?))).collect())
}

/// Where a directory's weights are: the one file, or the index of several.
///
/// # Errors
/// If there is neither.
pub fn file_in(directory: &Path) -> Result<PathBuf> {
    let found = [MODEL, INDEX].map(|name| directory.join(name)).into_iter().find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::file(directory.join(MODEL), "does not exist", "give a directory with weights in this file, or a file")
    })
}

/// The floating-point tensors of weights in any layout that is read, as GPT-2 stores them: a `.safetensors` file, the index
/// of several, or a `.pt` file.
///
/// # Errors
/// If a file cannot be read, is damaged, or holds something else.
pub fn import(path: &Path) -> Result<BTreeMap<String, Values>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tensors = if name.ends_with(".json") {
        read_shards(path)?
    } else if [".pt", ".pth", ".bin"].iter().any(|end| name.ends_with(end)) {
        let reals = |(name, tensor): (String, crate::io::tensors::Loaded)| match tensor.given {
            Given::Real(shape, values) => Some((name, Values { shape, values })),
            Given::Int(..) => None,
        };
        pytorch::read(path)?.into_iter().filter_map(reals).collect()
    } else {
        read(path)?
    };
    Ok(as_gpt2(tensors))
}

/// The tensors of several files, which the index names.
fn read_shards(index: &Path) -> Result<BTreeMap<String, Values>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index)
        .map_err(|e| Error::file(index, format!("cannot be read: {e}"), "give a file that exists"))?;
    let Index { weight_map } = serde_json::from_str(&text)
        .map_err(|e| Error::file(index, format!("is no index of weights: {e}"), "copy it again"))?;
    let folder = index.parent().unwrap_or(Path::new(""));
    let files: BTreeSet<&String> = weight_map.values().collect();
    let mut all = BTreeMap::new();
    for file in files {
        if file.contains(['/', '\\']) {
            let problem = format!("names `{file}`, which is no file beside it");
            return Err(Error::file(index, problem, "put all files in one directory"));
        }
        let path = folder.join(file);
        let mut tensors = read(&path)?;
        for (name, _) in weight_map.iter().filter(|(_, of)| *of == file) {
            // Of integers, such as masks, there is none here.
            all.extend(tensors.remove_entry(name));
        }
    }
    Ok(all)
}

/// Weights that nn.Linear stored, transposed; recognised by the one weight of a block that is three times as wide as high,
/// or high as wide.
fn as_gpt2(mut tensors: BTreeMap<String, Values>) -> BTreeMap<String, Values> {
    let linear = |t: &Values| matches!(t.shape[..], [rows, columns] if rows == 3 * columns && columns > 0);
    let transposed = tensors.iter().any(|(name, t)| name.ends_with("h.0.attn.c_attn.weight") && linear(t));
    if transposed {
        for (name, t) in &mut tensors {
            if TRANSPOSED.iter().any(|end| name.ends_with(end)) {
                *t = t.transposed();
            }
        }
    }
    tensors
}

impl Values {
    /// The transpose of a matrix; of anything else, itself.
    pub fn transposed(&self) -> Values {
        let [rows, columns] = self.shape[..] else { return self.clone() };
        let values = (0..rows * columns).map(|i| self.values[i % rows * columns + i / rows]).collect();
        Values { shape: vec![columns, rows], values }
    }
}

fn widen(view: &TensorView) -> Option<Values> {
    fn all<const N: usize>(view: &TensorView, value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        view.data().chunks_exact(N).map(|b| value(b.try_into().expect("a chunk's size"))).collect()
    }
    let values = match view.dtype() {
        Dtype::F64 => all(view, f64::from_le_bytes),
        Dtype::F32 => all(view, |b| f32::from_le_bytes(b) as f64),
        Dtype::F16 => all(view, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::BF16 => all(view, |b| bf16::from_le_bytes(b).to_f64()),
        _ => return None,
    };
    Some(Values { shape: view.shape().to_vec(), values })
}

/// A safetensors file of f32 tensors, in the metadata that transformers asks for.
pub fn to_bytes(tensors: &BTreeMap<String, Values>) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|t| t.values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, t), bytes)| {
        (name, TensorView::new(Dtype::F32, t.shape.clone(), bytes).expect("four bytes an element"))
    });
    // One entry only: the order of several would differ from run to run.
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize(views, Some(metadata)).expect("shapes and data agree")
}

/// A plan's parameters by name.
pub fn of_plan(plan: &Plan) -> Result<BTreeMap<String, Values>> {
    let graph = plan.graph();
    let one = |t: Tensor| {
        let values = Values { shape: graph.shape(t).to_vec(), values: plan.read(t)? };
        Ok((graph.name(t).to_string(), values))
    };
    graph.parameters().into_iter().map(one).collect()
}

/// Writes a plan's parameters from tensors that came from `path`. Names may lack `transformer.`, as those of some
/// published GPT-2 files do; a head that is `tied` and absent is the token embedding. Of a plan without a head of its own
/// the file's head must be the token embedding.
///
/// # Errors
/// If a parameter is missing or has another shape, or a tensor is left over that is no parameter; it is named.
pub fn to_plan(plan: &Plan, mut tensors: BTreeMap<String, Values>, tied: bool, path: &Path) -> Result<()> {
    let graph = plan.graph();
    for t in graph.parameters() {
        let name = graph.name(t);
        let short = name.strip_prefix("transformer.").unwrap_or(name);
        let found = match tensors.remove(name).or_else(|| tensors.remove(short)) {
            Some(found) => found,
            // The embedding has been taken by now; the plan holds it.
            None if tied && name == HEAD => {
                let wte = embedding(graph);
                Values { shape: graph.shape(wte).to_vec(), values: plan.read(wte)? }
            }
            None => {
                let remedy = "give weights in GPT-2's layout, of the same --preset";
                return Err(Error::file(path, format!("tensor `{name}` is missing"), remedy));
            }
        };
        if found.shape != graph.shape(t) {
            let problem = format!("tensor `{name}` has shape {:?}, expected {:?}", found.shape, graph.shape(t));
            let remedy =
                "give weights of the same --preset, --block-size and vocabulary (h.* weights are stored (in, out))";
            return Err(Error::file(path, problem, remedy));
        }
        plan.write(t, &found.values)?;
    }
    if let Some(head) = tensors.remove(HEAD) {
        let wte = plan.read(embedding(graph))?;
        // As the plan holds it, which may be in less precision.
        if head.values.len() != wte.len() || head.values.iter().zip(&wte).any(|(&a, &b)| a as f32 != b as f32) {
            let problem = format!("tensor `{HEAD}` is not the token embedding, and the model's head is");
            return Err(Error::file(path, problem, "train without --tie-weights, or set tie_word_embeddings: false"));
        }
    }
    // Causal masks, which older files store as buffers.
    let mask = |name: &str| name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
    match tensors.keys().find(|name| !mask(name)) {
        Some(name) => {
            let problem = format!("tensor `{name}` is no parameter of this model");
            Err(Error::file(path, problem, "give weights of the same --preset"))
        }
        None => Ok(()),
    }
}

fn embedding(graph: &Graph) -> Tensor {
    let all = graph.parameters();
    all.into_iter().find(|&t| graph.name(t) == EMBEDDING).expect("every GPT has a token embedding")
}
