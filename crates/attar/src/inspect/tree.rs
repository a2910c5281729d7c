//! The nodes of a model as a tree, by the prefixes of their names.

use serde::Serialize;

use super::NodeRow;

/// All nodes whose names begin alike.
#[derive(Debug, Default, Serialize)]
pub struct TreeRow {
    /// What this level adds to the name of the level above; steps without a choice are joined.
    pub name: String,
    pub node_count: usize,
    pub parameter_count: u64,
    pub weight_bytes: u64,
    pub macs: u64,
    pub activation_bytes: u64,
    pub children: Vec<TreeRow>,
}

impl TreeRow {
    /// The tree of `nodes`. The last part of a name is the node's own and makes no level.
    pub(super) fn new(nodes: &[NodeRow]) -> Self {
        let mut root = Self::default();
        for node in nodes {
            let parts: Vec<&str> =
                node.name.split(['/', '.']).filter(|part| !part.is_empty()).collect();
            let mut level = &mut root;
            level.count(node);
            for part in &parts[..parts.len().saturating_sub(1)] {
                // Neighbours in the file are neighbours here: the last level is looked at first.
                let found = level.children.iter().rposition(|child| child.name == *part);
                let index = found.unwrap_or_else(|| {
                    level.children.push(Self { name: (*part).to_string(), ..Self::default() });
                    level.children.len() - 1
                });
                level = &mut level.children[index];
                level.count(node);
            }
        }
        root.join();
        root
    }

    fn count(&mut self, node: &NodeRow) {
        self.node_count += 1;
        self.parameter_count += node.parameter_count;
        self.weight_bytes += node.weight_bytes;
        if node.is_counted {
            self.macs += node.macs.unwrap_or(0);
            self.activation_bytes += node.activation_bytes.unwrap_or(0);
        }
    }

    /// Joins a level with its only child, if no node stands beside that.
    fn join(&mut self) {
        while let [only] = self.children.as_mut_slice() {
            if only.node_count != self.node_count {
                break;
            }
            let child = std::mem::take(only);
            if !self.name.is_empty() {
                self.name.push('/');
            }
            self.name.push_str(&child.name);
            self.children = child.children;
        }
        self.children.iter_mut().for_each(Self::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeRow {
        let (op_type, output_shape) = ("Relu".to_string(), String::new());
        NodeRow {
            name: name.into(),
            op_type,
            output_shape,
            parameter_count: 1,
            weight_bytes: 4,
            macs: Some(10),
            activation_bytes: None,
            is_counted: true,
        }
    }

    fn text(row: &TreeRow, depth: usize) -> String {
        let own = format!("{}{}:{} ", "-".repeat(depth), row.name, row.node_count);
        own + &row.children.iter().map(|child| text(child, depth + 1)).collect::<String>()
    }

    #[test]
    fn levels_without_a_choice_are_joined() {
        let names = ["/net/encoder/layer.0/a", "/net/encoder/layer.0/b", "/net/encoder/layer.1/a"];
        let nodes: Vec<NodeRow> = names.into_iter().map(node).collect();
        let tree = TreeRow::new(&nodes);
        assert_eq!(text(&tree, 0), "net/encoder/layer:3 -0:2 -1:1 ");
        assert_eq!(tree.macs, 30);
    }
}
