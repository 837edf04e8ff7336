//! What needs what: the dependencies of a catalogue as a graph of things that people know.
//!
//! Indexes, constraints, triggers, policies and owned sequences are parts of their tables here, so
//! that two tables whose foreign keys refer to each other are seen as what they are: a circle. That
//! an object is in a schema is in its name. The server knows nothing of what the body of a function
//! in a text uses (`plpgsql`, or `sql` in quotes), so that is not in the graph either.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::catalogue::{Catalogue, EdgeKind, Object, ObjectKind};
use super::svg;

/// A thing that needs others, or is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: ObjectKind,
    /// `schema.name`
    pub name: String,
    /// The circle that it is in, by number.
    pub circle: Option<usize>,
}

/// One thing needs another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub from: usize,
    pub to: usize,
    /// The parts by which it does; empty when it does so itself.
    pub via: BTreeSet<String>,
    pub partition: bool,
}

/// Things and who needs whom.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
}

impl Graph {
    pub fn new(catalogue: &Catalogue) -> Self {
        let objects = &catalogue.objects;
        let places: HashMap<(&str, &str), usize> = objects
            .iter()
            .enumerate()
            .filter(|(_, one)| {
                one.kind.is_relation() || matches!(one.kind, ObjectKind::Domain | ObjectKind::Type)
            })
            .map(|(at, one)| ((one.schema.as_deref().unwrap_or_default(), one.name.as_str()), at))
            .collect();
        let whole = |at: usize| -> Option<usize> {
            let one = objects.get(at)?;
            let schema = one.schema.as_deref().unwrap_or_default();
            if let Some(of) = &one.of {
                return places.get(&(schema, of.as_str())).copied();
            }
            if one.kind == ObjectKind::Sequence
                && let Some(owner) = one.facts.get("owned-by")
                && let Some((table, _)) = owner.rsplit_once('.')
            {
                return objects
                    .iter()
                    .position(|other| other.kind.is_relation() && other.qualified() == table);
            }
            (one.kind != ObjectKind::Schema).then_some(at)
        };
        let wholes: Vec<Option<usize>> = (0..objects.len()).map(whole).collect();
        let of = |at: usize| wholes.get(at).copied().flatten();
        let mut links: BTreeMap<(usize, usize), (BTreeSet<String>, bool, bool)> = BTreeMap::new();
        for edge in &catalogue.dependencies {
            let (Some(from), Some(to)) = (of(edge.from), of(edge.to)) else { continue };
            if from == to {
                continue;
            }
            let link = links.entry((from, to)).or_default();
            match objects.get(edge.from) {
                Some(part) if from != edge.from => {
                    link.0.insert(part.name.clone());
                }
                _ => link.1 = true,
            }
            link.2 |= edge.kind == EdgeKind::Partition
                || objects.get(edge.from).is_some_and(|one| {
                    one.facts.contains_key("partition-bound")
                        && objects
                            .get(edge.to)
                            .is_some_and(|o| o.kind == ObjectKind::PartitionedTable)
                });
        }
        let mut places = HashMap::new();
        let mut graph = Self::default();
        for (at, one) in objects.iter().enumerate() {
            if of(at) == Some(at) {
                places.insert(at, graph.nodes.len());
                graph.nodes.push(node(one));
            }
        }
        for ((from, to), (via, itself, partition)) in links {
            if let (Some(from), Some(to)) = (places.get(&from), places.get(&to)) {
                let via = if itself { BTreeSet::new() } else { via };
                graph.links.push(Link { from: *from, to: *to, via, partition });
            }
        }
        graph.find_circles();
        graph
    }

    /// The nodes of this name: `orders`, `public.orders`, functions also without arguments.
    pub fn find(&self, name: &str) -> Vec<usize> {
        let plain = |text: &str| text.split('(').next().unwrap_or_default().to_owned();
        let last = |text: &str| {
            let plain = plain(text);
            plain.rsplit('.').next().unwrap_or_default().to_owned()
        };
        let all = self.nodes.iter().enumerate();
        all.filter(|(_, node)| {
            node.name == name || plain(&node.name) == name || last(&node.name) == name
        })
        .map(|(at, _)| at)
        .collect()
    }

    /// What a node needs, with how many steps away it is: 1 is direct, more is indirect.
    pub fn needs(&self, node: usize) -> BTreeMap<usize, usize> {
        self.reach(node, |link| (link.from, link.to))
    }

    /// What needs a node, with how many steps away it is.
    pub fn needed_by(&self, node: usize) -> BTreeMap<usize, usize> {
        self.reach(node, |link| (link.to, link.from))
    }

    fn reach(&self, node: usize, ends: impl Fn(&Link) -> (usize, usize)) -> BTreeMap<usize, usize> {
        let mut next: HashMap<usize, Vec<usize>> = HashMap::new();
        for link in &self.links {
            let (from, to) = ends(link);
            next.entry(from).or_default().push(to);
        }
        let mut found = BTreeMap::new();
        let mut open = vec![node];
        let mut steps = 0;
        while !open.is_empty() {
            steps += 1;
            let mut further = Vec::new();
            for at in open {
                for other in next.get(&at).into_iter().flatten() {
                    if *other != node && !found.contains_key(other) {
                        found.insert(*other, steps);
                        further.push(*other);
                    }
                }
            }
            open = further;
        }
        found
    }

    /// Things that need each other, directly or not: each circle in the order of names.
    pub fn circles(&self) -> Vec<Vec<usize>> {
        let mut circles: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, node) in self.nodes.iter().enumerate() {
            if let Some(circle) = node.circle {
                circles.entry(circle).or_default().push(at);
            }
        }
        circles.into_values().collect()
    }

    /// The part of it that has to do with some nodes: what they need, and what needs them.
    #[must_use]
    pub fn around(&self, nodes: &[usize]) -> Self {
        let mut kept: BTreeSet<usize> = nodes.iter().copied().collect();
        for node in nodes {
            kept.extend(self.needs(*node).keys());
            kept.extend(self.needed_by(*node).keys());
        }
        self.only(&kept)
    }

    /// Some nodes, and the links among them.
    #[must_use]
    pub fn only(&self, kept: &BTreeSet<usize>) -> Self {
        let places: HashMap<usize, usize> =
            kept.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let mut graph = Self {
            nodes: kept.iter().filter_map(|at| self.nodes.get(*at).cloned()).collect(),
            links: Vec::new(),
        };
        for link in &self.links {
            if let (Some(from), Some(to)) = (places.get(&link.from), places.get(&link.to)) {
                graph.links.push(Link { from: *from, to: *to, ..link.clone() });
            }
        }
        graph.find_circles();
        graph
    }

    /// Without what nobody needs and what needs nobody.
    #[must_use]
    pub fn connected(&self) -> Self {
        let kept = self.links.iter().flat_map(|link| [link.from, link.to]).collect();
        self.only(&kept)
    }

    /// Numbers the circles: Tarjan's strongly connected components, without recursion.
    fn find_circles(&mut self) {
        let count = self.nodes.len();
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
        for link in &self.links {
            if let Some(list) = next.get_mut(link.from) {
                list.push(link.to);
            }
        }
        const NEW: usize = usize::MAX;
        let (mut index, mut low) = (vec![NEW; count], vec![0; count]);
        let (mut on_stack, mut stack) = (vec![false; count], Vec::new());
        let (mut counter, mut circles) = (0, 0);
        for root in 0..count {
            if index[root] != NEW {
                continue;
            }
            let mut work = vec![(root, 0)];
            while let Some((at, step)) = work.pop() {
                if step == 0 {
                    index[at] = counter;
                    low[at] = counter;
                    counter += 1;
                    stack.push(at);
                    on_stack[at] = true;
                }
                if let Some(other) = next[at].get(step).copied() {
                    work.push((at, step + 1));
                    if index[other] == NEW {
                        work.push((other, 0));
                    } else if on_stack[other] {
                        low[at] = low[at].min(index[other]);
                    }
                    continue;
                }
                for other in &next[at] {
                    if on_stack[*other] {
                        low[at] = low[at].min(low[*other]);
                    }
                }
                if low[at] == index[at] {
                    let mut members = Vec::new();
                    while let Some(member) = stack.pop() {
                        on_stack[member] = false;
                        members.push(member);
                        if member == at {
                            break;
                        }
                    }
                    let circle = (members.len() > 1).then_some(circles);
                    circles += usize::from(circle.is_some());
                    for member in members {
                        self.nodes[member].circle = circle;
                    }
                }
            }
        }
    }

    /// Whether a link is part of a circle.
    pub fn is_circular(&self, link: &Link) -> bool {
        let circle = |at: usize| self.nodes.get(at).and_then(|node| node.circle);
        circle(link.from).is_some() && circle(link.from) == circle(link.to)
    }

    /// In the language of Graphviz.
    pub fn dot(&self) -> String {
        let quote = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut out = String::from(
            "digraph dependencies {\n  rankdir=RL;\n  node [shape=box, fontname=\"sans-serif\"];\n",
        );
        for (at, node) in self.nodes.iter().enumerate() {
            let color = if node.circle.is_some() { ", color=red" } else { "" };
            let name = quote(&node.name);
            let _ = writeln!(out, "  n{at} [label=\"{name}\\n{}\"{color}];", node.kind);
        }
        for link in &self.links {
            let via: Vec<String> = link.via.iter().map(|via| quote(via)).collect();
            let color = if self.is_circular(link) { ", color=red" } else { "" };
            let style = if link.partition { ", style=dashed" } else { "" };
            let label = via.join("\\n");
            let _ = writeln!(
                out,
                "  n{} -> n{} [label=\"{label}\"{color}{style}];",
                link.from, link.to
            );
        }
        out.push_str("}\n");
        out
    }

    /// As a picture.
    pub fn svg(&self, title: &str) -> String {
        svg::draw(self, title)
    }
}

fn node(object: &Object) -> Node {
    Node { kind: object.kind, name: object.qualified(), circle: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(count: usize, links: &[(usize, usize)]) -> Graph {
        let node = |at: usize| Node {
            kind: ObjectKind::Table,
            name: format!("public.t{at}"),
            circle: None,
        };
        let link = |(from, to): &(usize, usize)| Link {
            from: *from,
            to: *to,
            via: BTreeSet::new(),
            partition: false,
        };
        let mut graph = Graph {
            nodes: (0..count).map(node).collect(),
            links: links.iter().map(link).collect(),
        };
        graph.find_circles();
        graph
    }

    #[test]
    fn what_is_direct_indirect_and_circular() {
        let it = graph(7, &[(0, 1), (1, 2), (2, 3), (3, 1), (4, 0), (5, 6), (6, 5)]);
        assert_eq!(it.needs(0), BTreeMap::from([(1, 1), (2, 2), (3, 3)]));
        assert_eq!(it.needed_by(1), BTreeMap::from([(0, 1), (3, 1), (2, 2), (4, 2)]));
        assert_eq!(
            it.circles().into_iter().collect::<BTreeSet<_>>(),
            BTreeSet::from([vec![1, 2, 3], vec![5, 6]])
        );
        assert!(it.around(&[0]).find("t5").is_empty());
        assert_eq!(it.around(&[4]).nodes.len(), 5);
        let dot = it.dot();
        assert!(dot.contains("n3 -> n1 [label=\"\", color=red]"), "{dot}");
        assert!(dot.contains("n0 -> n1 [label=\"\"]"), "{dot}");
    }

    #[test]
    fn circles_are_those_that_a_slow_search_finds() {
        // Small graphs, all of which a plain search can do.
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % below as u64) as usize
        };
        for _ in 0..300 {
            let count = 2 + random(7);
            let links: Vec<(usize, usize)> = (0..random(14))
                .map(|_| (random(count), random(count)))
                .filter(|(a, b)| a != b)
                .collect();
            let it = graph(count, &links);
            for a in 0..count {
                for b in 0..count {
                    let mutual =
                        a != b && it.needs(a).contains_key(&b) && it.needs(b).contains_key(&a);
                    let same = a != b
                        && it.nodes[a].circle.is_some()
                        && it.nodes[a].circle == it.nodes[b].circle;
                    assert_eq!(mutual, same, "{links:?}: {a} {b}");
                }
            }
        }
    }
}
