//! Where a plan's buffers lie.
//!
//! Time runs from 0 to 2N for N nodes: node i runs forward at time i and backward at time 2N−1−i. A buffer lives
//! from its first write to its last read; two whose lives do not meet may share memory.

use super::pool::{ALIGNMENT, Pool, Slot};
use super::{HYPER, Plan, PlanOptions, Step};
use crate::cpu::strided::contiguous_strides;
use crate::device::{Device, Memory};
use crate::error::{Error, Result};
use crate::graph::{Graph, Origin, Preset, Tensor};
use crate::op::{Backward, Forward, Gradient, Kind, Place, Spec, UPDATE_SCRATCH};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Parameters start at multiples of this many elements within their buffer.
const PARAMETER_ALIGNMENT: usize = 64;
const FOREVER: usize = usize::MAX;

impl Plan {
    /// Plans `graph` on `device`.
    ///
    /// # Errors
    /// If the device has too little memory, or a root is itself an input of another op that a root depends on.
    pub fn new(graph: Graph, device: Arc<dyn Device>, options: &PlanOptions) -> Result<Plan> {
        Plan::placed(graph, device, options, None)
    }

    /// Plans another graph of the same model on the same device, such as one of longer sequences: parameters, their
    /// gradients, the optimiser's buffers, hyper-parameters and frozen tensors are those of `base`, whose memory lives on
    /// as long as either plan does. Whoever trains runs forward, backward and the update of one plan after the other's.
    /// Where it suffices, both compute in `base`'s memory: what one keeps, the other's next run may take.
    ///
    /// # Errors
    /// As [`Plan::new`], and if the graphs' parameters or frozen tensors differ in name, order or shape, or `base` has no
    /// gradients or fewer optimiser's buffers.
    pub fn sharing(graph: Graph, options: &PlanOptions, base: &Plan) -> Result<Plan> {
        let described = |g: &Graph| -> Vec<String> {
            let shown = |t: Tensor| format!("`{}` {} {:?}", g.name(t), g.spec(t), g.tensors[t.0].origin);
            g.parameters().into_iter().chain(g.frozen_tensors()).map(shown).collect()
        };
        let (own, others) = (described(&graph), described(&base.graph));
        if own != others {
            let at = own.iter().zip(&others).take_while(|(a, b)| a == b).count();
            let shown = |all: &[String]| all.get(at).cloned().unwrap_or("nothing".into());
            return Err(Error::shape("plan", "shared parameters", shown(&others), shown(&own)));
        }
        let sections = if options.roots.is_empty() { 1 } else { 2 + options.optimizer_slots };
        if sections + 1 > base.sections.len() {
            let (expected, got) = (format!("{sections} sections"), format!("{}", base.sections.len() - 1));
            return Err(Error::shape("plan", "the plan to share with", expected, got));
        }
        Plan::placed(graph, base.device.clone(), options, Some(base))
    }

    fn placed(graph: Graph, device: Arc<dyn Device>, options: &PlanOptions, base: Option<&Plan>) -> Result<Plan> {
        graph.check(device.precision())?;
        let [real, full] = [device.precision(), device.precision().full()].map(|p| p.bytes());
        let size_of = |kind: Kind| match kind {
            Kind::Real => real,
            Kind::Full => full,
            Kind::Int => 4,
        };
        let weights = graph.weights();
        let gradient_kind = |t: Tensor| graph.gradient_kind(t, &weights);
        let nodes = graph.nodes.len();
        let backward_time = |node: usize| 2 * nodes - 1 - node;
        let owner = |t: Tensor| graph.part(t).0;

        // Which tensors a root depends on and need a gradient.
        let mut active: BTreeSet<Tensor> = options.roots.iter().map(|&t| owner(t)).collect();
        let mut steps: Vec<usize> = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if node.outputs.iter().any(|t| active.contains(t)) {
                steps.push(i);
                for &t in node.inputs.iter().filter(|t| graph.needs_gradient(**t)) {
                    if options.roots.iter().any(|&r| owner(r) == owner(t)) {
                        let expected = "a tensor that no other root depends on";
                        return Err(Error::shape("plan", graph.name(t), expected, "an input of another op"));
                    }
                    active.insert(owner(t));
                }
            }
        }
        let readable: BTreeSet<Tensor> = (options.keep.iter().chain(&options.roots)).map(|&t| owner(t)).collect();

        // Lifetimes of values.
        let mut value_end: BTreeMap<Tensor, usize> = BTreeMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            for &t in node.outputs.iter() {
                value_end.entry(t).or_insert(i);
            }
            let end_at = |t: Tensor, time: usize, ends: &mut BTreeMap<Tensor, usize>| {
                let end = ends.entry(owner(t)).or_insert(time);
                *end = time.max(*end);
            };
            for (k, &t) in node.inputs.iter().enumerate() {
                end_at(t, i, &mut value_end);
                if steps.contains(&i) && node.contract.backward_reads_inputs.get(k).copied().unwrap_or(true) {
                    end_at(t, backward_time(i), &mut value_end);
                }
            }
            for (k, &t) in node.outputs.iter().enumerate() {
                if steps.contains(&i) && node.contract.backward_reads_outputs.get(k).copied().unwrap_or(false) {
                    end_at(t, backward_time(i), &mut value_end);
                }
            }
        }
        for &t in &readable {
            value_end.insert(t, FOREVER);
        }

        // Fixed sections: parameters (decayed first), their gradients, slots, hyper-parameters, what the user writes.
        let mut offsets: BTreeMap<Tensor, Slot> = BTreeMap::new();
        let mut gradient_offsets: BTreeMap<Tensor, Slot> = BTreeMap::new();
        let mut elements = 0;
        let mut decayed = 0;
        let mut in_order = Vec::new();
        for wanted in [true, false] {
            for t in graph.parameters() {
                if graph.tensors[t.0].origin == (Origin::Parameter { decay: wanted }) {
                    in_order.push((t, elements));
                    elements += graph.spec(t).numel().next_multiple_of(PARAMETER_ALIGNMENT);
                }
            }
            if wanted {
                decayed = elements;
            }
        }
        let section = (elements * full).next_multiple_of(ALIGNMENT);
        let training = !options.roots.is_empty();
        let mut fixed = 0;
        let flat: Vec<Slot> = match base {
            Some(base) => base.sections.iter().map(|s| Slot::At(s.address)).collect(),
            None => {
                let sections = 1 + if training { 1 + options.optimizer_slots } else { 0 };
                fixed = section * sections + ((HYPER + UPDATE_SCRATCH) * full).next_multiple_of(ALIGNMENT);
                (0..=sections).map(|s| Slot::Fixed(s * section)).collect()
            }
        };
        let mut master_offsets: BTreeMap<Tensor, Slot> = BTreeMap::new();
        for &(t, element) in &in_order {
            master_offsets.insert(t, flat[0].after(element * full));
            if training {
                gradient_offsets.insert(t, flat[1].after(element * full));
            }
        }
        let mut reserve = |bytes: usize| {
            fixed += bytes.next_multiple_of(ALIGNMENT);
            Slot::Fixed(fixed - bytes.next_multiple_of(ALIGNMENT))
        };
        let shadow = (real < full).then(|| reserve(elements * real));
        for &(t, element) in &in_order {
            let stored = match shadow {
                Some(Slot::Fixed(start)) => Slot::Fixed(start + element * real),
                _ => master_offsets[&t],
            };
            offsets.insert(t, stored);
        }
        let frozen = graph.frozen_tensors();
        if let Some(base) = base {
            let places = frozen.iter().zip(base.graph.frozen_tensors());
            offsets.extend(places.map(|(&t, other)| (t, Slot::At(base.values[&other].address))));
        }
        for t in graph.fed().into_iter().filter(|t| base.is_none() || !frozen.contains(t)) {
            offsets.insert(t, reserve(graph.spec(t).numel() * size_of(graph.spec(t).kind)));
        }
        for node in &graph.nodes {
            for t in node.contract.persistent_outputs.iter().map(|&output| node.outputs[output]) {
                offsets.insert(t, reserve(graph.spec(t).numel() * size_of(graph.spec(t).kind)));
            }
        }
        for t in options.roots.iter().map(|&t| owner(t)) {
            gradient_offsets.entry(t).or_insert_with(|| reserve(graph.spec(t).numel() * size_of(gradient_kind(t))));
        }
        let fixed = fixed;

        // Everything else shares memory by lifetime.
        let mut pool = Pool::default();
        let mut saved = Vec::new();
        let mut scratch = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let in_backward = steps.contains(&i);
            for &t in &node.outputs {
                let bytes = graph.spec(t).numel() * size_of(graph.spec(t).kind);
                offsets.entry(t).or_insert_with(|| Slot::Pooled(pool.add(bytes, i, value_end[&t])));
            }
            let end = if in_backward { backward_time(i) } else { i };
            let bytes = |spec: &Spec| spec.numel() * size_of(spec.kind);
            let blocks: Vec<Slot> =
                (node.contract.saved.iter()).map(|spec| Slot::Pooled(pool.add(bytes(spec), i, end))).collect();
            saved.push(blocks);
            let forward = Slot::Pooled(pool.add(node.contract.scratch_forward * full, i, i));
            let time = backward_time(i);
            let backward = in_backward.then(|| pool.add(node.contract.scratch_backward * full, time, time));
            scratch.push((forward, backward.map(Slot::Pooled)));
        }
        // Gradients: born at the first contribution, dead when their producer has run backward.
        let mut born: BTreeMap<Tensor, usize> = BTreeMap::new();
        for &i in &steps {
            for &t in graph.nodes[i].inputs.iter().filter(|t| graph.needs_gradient(**t)) {
                born.entry(owner(t)).or_insert(backward_time(i));
            }
        }
        let mut untouched = Vec::new();
        for t in (0..graph.tensors.len()).map(Tensor).filter(|&t| owner(t) == t && graph.needs_gradient(t)) {
            let kept = readable.contains(&t) || matches!(graph.tensors[t.0].origin, Origin::Fed { .. });
            let from = born.get(&t).copied();
            let settled = match graph.tensors[t.0].origin {
                Origin::Computed { .. } => true,
                // What adds up starts as zeros, and is left to `zero_gradients`.
                Origin::Parameter { .. } if options.accumulate => true,
                _ => options.roots.contains(&t) || from.is_some(),
            };
            if training && !settled {
                untouched.push(t);
            }
            if gradient_offsets.contains_key(&t) || !(training && (from.is_some() || kept)) {
                continue;
            }
            let end = match graph.tensors[t.0].origin {
                Origin::Computed { node, .. } if !kept => backward_time(node),
                _ => FOREVER,
            };
            let block = pool.add(graph.spec(t).numel() * size_of(gradient_kind(t)), from.unwrap_or(0), end);
            gradient_offsets.insert(t, Slot::Pooled(block));
        }
        let pooled = pool.place();

        let pooled_in = base.map(|b| b.pooled).filter(|(_, bytes)| *bytes >= pooled).map(|(start, _)| start);
        let memory = Arc::new(Memory::new(device.clone(), fixed + if pooled_in.is_some() { 0 } else { pooled })?);
        let shared = base.map_or_else(Vec::new, |b| [b.memory.clone()].into_iter().chain(b.shared.clone()).collect());
        let start = memory.address();
        let pooled_from = pooled_in.unwrap_or(start + fixed as u64);
        let address = |slot: Slot| match slot {
            Slot::Fixed(offset) => start + offset as u64,
            Slot::Pooled(block) => pooled_from + pool.offset(block) as u64,
            Slot::At(address) => address,
        };
        let place = |t: Tensor, kind: Kind, slots: &BTreeMap<Tensor, Slot>| -> Option<Place> {
            let info = &graph.tensors[t.0];
            let offset = if let Origin::View { offset, .. } = info.origin { offset } else { 0 };
            let start = address(*slots.get(&owner(t))?) + (offset * size_of(kind)) as u64;
            let (shape, strides) = (info.spec.shape.clone(), info.strides.clone());
            Some(Place { address: start, kind, shape, strides })
        };
        let flat_place = |slot: Slot, Spec { kind, shape }: Spec| {
            let strides = contiguous_strides(&shape);
            Place { address: address(slot), kind, strides, shape }
        };
        let value = |t: &Tensor| place(*t, graph.spec(*t).kind, &offsets).expect("every value has a place");
        let gradient = |t: &Tensor| place(*t, gradient_kind(*t), &gradient_offsets);

        let mut forward = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let saved_places =
                node.contract.saved.iter().zip(&saved[i]).map(|(s, &slot)| flat_place(slot, s.clone())).collect();
            let io = Forward {
                inputs: node.inputs.iter().map(value).collect(),
                outputs: node.outputs.iter().map(value).collect(),
                saved: saved_places,
                scratch: flat_place(scratch[i].0, Spec::full([node.contract.scratch_forward])),
            };
            forward.push(Step { op: node.op.clone(), zero: Vec::new(), io });
        }
        // Owners that something has contributed to already.
        let mut touched: BTreeSet<Tensor> = BTreeSet::new();
        if options.accumulate {
            touched.extend(graph.parameters());
        }
        let mut backward = Vec::new();
        for &i in &steps {
            let node = &graph.nodes[i];
            // How many elements of each owner this node contributes to: a first contribution that covers the owner
            // whole overwrites; one in part needs zeros first.
            let mut covered: BTreeMap<Tensor, usize> = BTreeMap::new();
            for &t in node.inputs.iter().filter(|t| graph.needs_gradient(**t)) {
                let (owner, part) = graph.part(t);
                *covered.entry(owner).or_default() += part.len();
            }
            let mut zero = Vec::new();
            let mut accumulates: BTreeMap<Tensor, bool> = BTreeMap::new();
            for (&t, &elements) in &covered {
                let whole = elements == graph.spec(t).numel();
                let first = touched.insert(t);
                if first && !whole {
                    zero.push(gradient(&t).expect("an active tensor has a gradient"));
                }
                accumulates.insert(t, !(first && whole));
            }
            let d_input = |t: &Tensor| {
                let to = gradient(t).filter(|_| graph.needs_gradient(*t))?;
                Some(Gradient { to, accumulate: accumulates[&owner(*t)] })
            };
            let io = Backward {
                inputs: node.inputs.iter().map(value).collect(),
                outputs: node.outputs.iter().map(value).collect(),
                saved: forward[i].io.saved.clone(),
                d_outputs: node.outputs.iter().map(|t| gradient(t).filter(|_| active.contains(t))).collect(),
                d_inputs: node.inputs.iter().map(d_input).collect(),
                scratch: flat_place(
                    scratch[i].1.expect("a backward step has scratch"),
                    Spec::full([node.contract.scratch_backward]),
                ),
            };
            backward.push(Step { op: node.op.clone(), zero, io });
        }
        let all = (0..graph.tensors.len()).map(Tensor);
        let values = all.clone().map(|t| (t, value(&t))).collect();
        let masters = |t: Tensor| Some((t, place(t, Kind::Full, &master_offsets)?));
        let masters = shadow.map_or_else(BTreeMap::new, |_| all.clone().filter_map(masters).collect());
        let gradients: BTreeMap<Tensor, Place> = all.filter_map(|t| Some((t, gradient(&t)?))).collect();
        let untouched = untouched.iter().filter_map(gradient).collect();
        let last = flat.len() - 1;
        let elements_of = |i: usize| if i == last { HYPER + UPDATE_SCRATCH } else { elements };
        let section = |(i, slot): (usize, Slot)| flat_place(slot, Spec::full([elements_of(i)]));
        let sections = flat.into_iter().enumerate().map(section).collect();
        let plan = Plan {
            memory,
            shared,
            forward,
            backward,
            untouched,
            values,
            masters,
            shadow: shadow.map(address).filter(|_| elements > 0),
            gradients,
            readable,
            parameters: (elements, decayed),
            sections,
            pooled: (pooled_from, pooled),
            poison: options.poison,
            graph,
            device,
        };
        // Parameters and their paddings, gradients and slots start as zeros.
        // SAFETY: the fixed sections start the plan's own allocation.
        unsafe { plan.device.fill(start, 0, fixed)? };
        for (t, preset) in &plan.graph.presets {
            match preset {
                Preset::Real(values) => plan.put(&plan.values[t], values)?,
                Preset::Int(values) => plan.write_indices(*t, values)?,
            }
        }
        for &root in &options.roots {
            if plan.graph.spec(root).numel() == 1 {
                plan.put(&plan.gradients[&root], &[1.0])?;
            }
        }
        Ok(plan)
    }
}
