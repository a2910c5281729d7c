//! The rules for channels of each operator of attention.

use attar_graph::{Dim, Node};

use super::channels::{Operands, Part, fix_scale, hold_heads, tie_heads, tie_places};
use crate::channels::{Axis, Blocks, Channels, Factor, Place, Port, Size, Tensors, input, output};

/// A positive attribute.
fn count(node: &Node, name: &str) -> Option<usize> {
    usize::try_from(node.int(name).ok()??).ok().filter(|&count| count > 0)
}

/// An operand of rank 4 with heads on axis 1, where the tensor is there.
fn cache(tensors: &Tensors, port: Port) -> Option<Vec<Part>> {
    match tensors.rank(port) {
        None => Some(Vec::new()),
        Some(_) => Part::apart(tensors, port, [1, 3]).map(|part| vec![part]),
    }
}

/// The axis for heads of what is added to scores [batch, heads, queries, keys]; nothing where all
/// heads share it, `None` where that is not known.
fn addend(tensors: &Tensors, port: Port) -> Option<Vec<Part>> {
    let Some(axis) = tensors.rank(port).and_then(|rank| rank.checked_sub(3)) else {
        return Some(Vec::new());
    };
    if tensors.shape(port)?[axis] == Dim::Known(1) {
        return Some(Vec::new());
    }
    Part::heads(tensors, Axis { port, axis }).map(|part| vec![part])
}

/// Of ONNX's `Attention`.
pub(super) fn standard(node: &Node, tensors: &Tensors) -> Option<Channels> {
    let [heads, kv_heads] = ["q_num_heads", "kv_num_heads"].map(|name| count(node, name));
    let query = Part::of(tensors, Port::Input(0), heads)?;
    let key = Part::of(tensors, Port::Input(1), kv_heads)?;
    let value = Part::of(tensors, Port::Input(2), kv_heads)?;
    let result = Part::of(tensors, Port::Output(0), heads)?;
    let caches = |ports: [Port; 2]| -> Option<Vec<Part>> {
        let [past, present] = ports.map(|port| cache(tensors, port));
        Some(past?.into_iter().chain(present?).collect())
    };
    let mut operands = Operands {
        queries: vec![query],
        results: vec![result],
        keys: vec![key],
        values: vec![value],
        ..Operands::default()
    };
    operands.keys.extend(caches([Port::Input(4), Port::Output(1)])?);
    operands.values.extend(caches([Port::Input(5), Port::Output(2)])?);
    operands.query_gates.extend(addend(tensors, Port::Input(3))?);
    operands.query_gates.extend(addend(tensors, Port::Output(3))?);
    let mut channels = Channels::default();
    operands.tie(&mut channels, tensors.factor);
    for (name, part) in [("q_num_heads", query), ("kv_num_heads", key)] {
        if node.attribute(name).is_some() {
            hold_heads(&mut channels, name, &part);
        }
    }
    if node.attribute("scale").is_none() {
        fix_scale(&mut channels, &query);
    }
    Some(channels)
}

/// Of ONNX Runtime's `MultiHeadAttention`.
pub(super) fn multi_head(node: &Node, tensors: &Tensors) -> Option<Channels> {
    let heads = count(node, "num_heads")?;
    if node.input(8).is_some() || node.input(9).is_some() {
        return None;
    }
    let of = |index: usize| Part::of(tensors, Port::Input(index), Some(heads));
    // Several operands in one tensor, [batch, rows, heads, parts, size], have the same axes.
    let together = |index: usize| {
        let is_together = tensors.rank(Port::Input(index)) == Some(5);
        is_together.then(|| Part::apart(tensors, Port::Input(index), [2, 4]))
    };
    let [query, key, value] = match (together(0), together(1)) {
        (Some(all), _) => [all?; 3],
        (None, Some(both)) => [of(0)?, both?, both?],
        (None, None) => [of(0)?, of(1)?, of(2)?],
    };
    let sizes = [query, key, value].map(|part| part.size());
    let mut operands = Operands {
        queries: vec![query],
        results: vec![Part::beside(output(0, 2), 0, [heads, sizes[2]])],
        keys: vec![key],
        values: vec![value],
        ..Operands::default()
    };
    if node.input(3).is_some() {
        operands.add_bias(input(3, 0), heads, sizes);
    }
    for (ports, parts) in [
        ([Port::Input(6), Port::Output(1)], &mut operands.keys),
        ([Port::Input(7), Port::Output(2)], &mut operands.values),
    ] {
        for port in ports {
            parts.extend(cache(tensors, port)?);
        }
    }
    operands.query_gates.extend(addend(tensors, Port::Input(5))?);
    let mut channels = Channels::default();
    operands.tie(&mut channels, tensors.factor);
    hold_heads(&mut channels, "num_heads", &query);
    if node.float_or("scale", 0.0) == Ok(0.0) {
        fix_scale(&mut channels, &query);
    }
    Some(channels)
}

/// Of ONNX Runtime's `Attention`, whose weights hold those of queries, keys and values.
pub(super) fn packed(node: &Node, tensors: &Tensors) -> Option<Channels> {
    let heads = count(node, "num_heads")?;
    let is_other = |name| node.int_or(name, 0) != Ok(0);
    if is_other("do_rotary") || is_other("past_present_share_buffer") {
        return None;
    }
    let weights = input(1, 1);
    let total = tensors.size(weights)?;
    let given = node.ints("qkv_hidden_sizes").ok()?.filter(|given| !given.is_empty());
    let hidden: Vec<usize> = match given {
        Some(given) => {
            given.iter().map(|&size| usize::try_from(size)).collect::<Result<_, _>>().ok()?
        }
        None => vec![total / 3; 3],
    };
    let &[q, k, v] = hidden.as_slice() else { return None };
    let is_whole = |size: usize| size > 0 && size.is_multiple_of(heads);
    if q != k || q.checked_add(k)?.checked_add(v)? != total || ![q, v].into_iter().all(is_whole) {
        return None;
    }
    let sizes = hidden.iter().map(|size| size / heads).collect::<Vec<_>>();
    let sizes = [sizes[0], sizes[1], sizes[2]];
    let mut operands = Operands { is_square: given.is_none(), ..Operands::default() };
    operands.add_bias(weights, heads, sizes);
    if node.input(2).is_some() {
        operands.add_bias(input(2, 0), heads, sizes);
    }
    operands.results.push(Part::beside(output(0, 2), 0, [heads, sizes[2]]));
    for port in [Port::Input(4), Port::Output(1)] {
        // [2, batch, heads, rows, size]: keys, then values.
        if tensors.rank(port).is_some() {
            let both = Part::apart(tensors, port, [2, 4])?;
            operands.keys.push(both);
            operands.values.push(both);
        }
    }
    operands.query_gates.extend(addend(tensors, Port::Input(5))?);
    let mut channels = Channels::default();
    channels.tie_summed(tensors, input(0, 2), input(1, 0));
    let query = operands.queries[0];
    operands.tie(&mut channels, tensors.factor);
    hold_heads(&mut channels, "num_heads", &query);
    if given.is_some() {
        let mut from = 0;
        for (element, size) in hidden.into_iter().enumerate() {
            let place = Place::AttributeElement("qkv_hidden_sizes", element);
            let blocks = Blocks { axis: weights, from, up_to: from + size, per: 1 };
            channels.sizes.push(Size { place, blocks });
            from += size;
        }
    }
    if node.float_or("scale", 0.0) == Ok(0.0) {
        fix_scale(&mut channels, &query);
    }
    Some(channels)
}

/// Of both `RotaryEmbedding`s; `tables` are the indices of cosines and sines.
pub(super) fn rotary(node: &Node, tensors: &Tensors, tables: [usize; 2]) -> Option<Channels> {
    if node.int_or("is_packed_batching", 0) != Ok(0) {
        return None;
    }
    let [cosines, sines] =
        tables.map(|table| Some(input(table, tensors.rank(Port::Input(table))?.checked_sub(1)?)));
    let tables = [cosines?, sines?];
    let half = tensors.size(tables[0]).filter(|&half| half > 0)?;
    let heads = match count(node, "num_heads") {
        Some(heads) => heads,
        None => tensors.size(input(0, tensors.rank(Port::Input(0))? - 1))? / (2 * half),
    };
    let x = Part::of(tensors, Port::Input(0), Some(heads).filter(|&heads| heads > 0))?;
    let y = Part::of(tensors, Port::Output(0), Some(heads))?;
    let given = count(node, "rotary_embedding_dim");
    if given.unwrap_or(x.size()) != 2 * half || 2 * half > x.size() {
        return None;
    }
    let mut channels = Channels::default();
    let is_last = tensors.factor == Factor::Last;
    if !x.is_beside() || !is_last {
        tie_heads(&mut channels, &x, &x, |head| head);
        tie_heads(&mut channels, &y, &x, |head| head);
    }
    let blocks = x.blocks(false)?;
    if !x.is_beside() || is_last {
        tie_places(&mut channels, &x, &x);
        tie_places(&mut channels, &y, &x);
        let is_interleaved = node.int_or("interleaved", 0).ok()? != 0;
        for pair in 0..half {
            let [a, b] =
                if is_interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + half] };
            let a = blocks.from + a;
            channels.tie_range(blocks.axis, a, blocks.axis, blocks.from + b, 1);
            for table in tables {
                channels.tie_range(table, pair, blocks.axis, a, 1);
            }
        }
    }
    if count(node, "num_heads").is_some() {
        hold_heads(&mut channels, "num_heads", &x);
    }
    if given.is_some() {
        let blocks = Blocks { up_to: blocks.from + 2 * half, per: 1, ..blocks };
        channels.sizes.push(Size { place: Place::Attribute("rotary_embedding_dim"), blocks });
    }
    Some(channels)
}

/// Of `LinearAttention`.
pub(super) fn linear(node: &Node, tensors: &Tensors) -> Option<Channels> {
    let (heads, kv_heads) = (count(node, "q_num_heads")?, count(node, "kv_num_heads")?);
    let of = |port: Port, heads: usize| Part::of(tensors, port, Some(heads));
    let (query, key) = (of(Port::Input(0), heads)?, of(Port::Input(1), kv_heads)?);
    let mut operands = Operands {
        queries: vec![query],
        results: vec![of(Port::Output(0), heads)?],
        keys: vec![key],
        values: vec![of(Port::Input(2), kv_heads)?],
        ..Operands::default()
    };
    for port in [Port::Input(3), Port::Output(1)] {
        // The state, [batch, heads, places of keys, places of values].
        if tensors.rank(port).is_some() {
            operands.keys.push(Part::apart(tensors, port, [1, 2])?);
            operands.values.push(Part::apart(tensors, port, [1, 3])?);
        }
    }
    for index in [4, 5] {
        // Decays and gates: one of each head, or of each place of a key; or one for all.
        if tensors.rank(Port::Input(index)).is_none() {
            continue;
        }
        let axis = input(index, 2);
        match tensors.size(axis)? {
            1 => {}
            size if size == kv_heads => {
                operands.key_gates.push(Part::beside(axis, 0, [kv_heads, 1]));
            }
            _ => operands.keys.push(of(Port::Input(index), kv_heads)?),
        }
    }
    let mut channels = Channels::default();
    operands.tie(&mut channels, tensors.factor);
    if tensors.factor == Factor::Last {
        // A rule that corrects sums products of keys with what keys wrote.
        let own = key.blocks(false)?.axis;
        channels.summed.push([own, own]);
    }
    for (name, part) in [("q_num_heads", query), ("kv_num_heads", key)] {
        hold_heads(&mut channels, name, &part);
    }
    if node.float_or("scale", 0.0) == Ok(0.0) {
        fix_scale(&mut channels, &query);
    }
    Some(channels)
}
