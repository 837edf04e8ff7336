//! A graph as a picture: columns from right to left, each thing to the right of all that it needs.
//!
//! The circles are first taken as one thing each, so that the rest has an order; the column of a
//! thing is the longest way from it to something that needs nothing. Within columns things are moved
//! near to those that they are linked with, a few times over. A link that passes columns goes
//! through a gap of its own in each of them, so that no line crosses a box.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::catalogue::ObjectKind;
use super::graph::Graph;

const HEIGHT: f64 = 40.0;
const GAP: f64 = 16.0;
/// Of a link that passes.
const LANE: f64 = 8.0;
const BETWEEN: f64 = 110.0;
const MARGIN: f64 = 24.0;
const HEAD: f64 = 64.0;
/// Of a letter, about.
const LETTER: f64 = 7.3;
const LONGEST: usize = 44;
const ROUNDS: usize = 12;

/// A box, or the gap through which a link passes.
struct Slot {
    node: Option<usize>,
    column: usize,
    height: f64,
    /// Of its middle.
    y: f64,
}

/// A link, through all the slots on its way.
struct Way {
    link: usize,
    slots: Vec<usize>,
}

pub(super) fn draw(graph: &Graph, title: &str) -> String {
    let columns = columns(graph);
    let mut slots: Vec<Slot> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| Slot { node: Some(at), column: *column, height: HEIGHT, y: 0.0 })
        .collect();
    let mut ways = Vec::new();
    for (number, link) in graph.links.iter().enumerate() {
        let column = |at: usize| columns.get(at).copied().unwrap_or(0);
        let mut way = vec![link.from];
        for between in (column(link.to) + 1..column(link.from)).rev() {
            way.push(slots.len());
            slots.push(Slot { node: None, column: between, height: LANE, y: 0.0 });
        }
        way.push(link.to);
        ways.push(Way { link: number, slots: way });
    }
    let order = arrange(graph, &mut slots, &ways);
    paint(graph, title, &slots, &ways, &order)
}

/// The column of each node, 0 for what needs nothing.
fn columns(graph: &Graph) -> Vec<usize> {
    let group = |at: usize| match graph.nodes.get(at).and_then(|node| node.circle) {
        Some(circle) => graph.nodes.len() + circle,
        None => at,
    };
    let mut needs: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for at in 0..graph.nodes.len() {
        needs.entry(group(at)).or_default();
    }
    for link in &graph.links {
        let (from, to) = (group(link.from), group(link.to));
        if from != to {
            needs.entry(from).or_default().insert(to);
        }
    }
    // Without circles every round settles at least what needs only what is settled.
    let mut column: BTreeMap<usize, usize> = BTreeMap::new();
    while column.len() < needs.len() {
        let settled: Vec<(usize, usize)> = needs
            .iter()
            .filter(|(at, _)| !column.contains_key(at))
            .filter_map(|(at, others)| {
                let of: Option<Vec<usize>> =
                    others.iter().map(|other| column.get(other).copied()).collect();
                Some((*at, of?.into_iter().max().map_or(0, |most| most + 1)))
            })
            .collect();
        if settled.is_empty() {
            break;
        }
        column.extend(settled);
    }
    (0..graph.nodes.len()).map(|at| column.get(&group(at)).copied().unwrap_or(0)).collect()
}

/// Puts the slots of each column in order and at their heights; the slots of each column.
fn arrange(graph: &Graph, slots: &mut [Slot], ways: &[Way]) -> Vec<Vec<usize>> {
    let count = slots.iter().map(|slot| slot.column + 1).max().unwrap_or(0);
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (at, slot) in slots.iter().enumerate() {
        if let Some(column) = order.get_mut(slot.column) {
            column.push(at);
        }
    }
    let name = |slot: &Slot| slot.node.and_then(|at| graph.nodes.get(at)).map(|n| n.name.clone());
    for column in &mut order {
        column.sort_by_key(|at| slots.get(*at).map(name));
    }
    let mut near: Vec<Vec<usize>> = vec![Vec::new(); slots.len()];
    for way in ways {
        for pair in way.slots.windows(2) {
            if let [a, b] = pair {
                if let Some(list) = near.get_mut(*a) {
                    list.push(*b);
                }
                if let Some(list) = near.get_mut(*b) {
                    list.push(*a);
                }
            }
        }
    }
    stack(slots, &order);
    for round in 0..ROUNDS {
        let middle: Vec<f64> = near
            .iter()
            .enumerate()
            .map(|(at, others)| {
                let ys: Vec<f64> = others.iter().filter_map(|o| Some(slots.get(*o)?.y)).collect();
                let own = slots.get(at).map_or(0.0, |slot| slot.y);
                if ys.is_empty() { own } else { ys.iter().sum::<f64>() / ys.len() as f64 }
            })
            .collect();
        let wish = |at: &usize| middle.get(*at).copied().unwrap_or(0.0);
        for column in &mut order {
            if round < ROUNDS / 2 {
                column.sort_by(|a, b| wish(a).total_cmp(&wish(b)));
            }
            settle(slots, column, &wish);
        }
    }
    let top = slots.iter().map(|slot| slot.y - slot.height / 2.0).fold(f64::INFINITY, f64::min);
    for slot in slots.iter_mut() {
        slot.y += HEAD + MARGIN - if top.is_finite() { top } else { 0.0 };
    }
    order
}

/// One below the other, every column around the same middle.
fn stack(slots: &mut [Slot], order: &[Vec<usize>]) {
    for column in order {
        let total: f64 =
            column.iter().filter_map(|at| Some(slots.get(*at)?.height + GAP)).sum::<f64>();
        let mut y = -total / 2.0;
        for at in column {
            if let Some(slot) = slots.get_mut(*at) {
                slot.y = y + slot.height / 2.0;
                y += slot.height + GAP;
            }
        }
    }
}

/// Slots that touch each other: their places from its top, the sum of wishes, how many, its height.
type Block = (Vec<(usize, f64)>, f64, f64, f64);

/// Moves the slots of a column to where they wish to be, as far as there is room: neighbours that
/// get into each other's way share what they wish.
fn settle(slots: &mut [Slot], column: &[usize], wish: &dyn Fn(&usize) -> f64) {
    let mut blocks: Vec<Block> = Vec::new();
    for at in column {
        let height = slots.get(*at).map_or(0.0, |slot| slot.height);
        let mut block = (vec![(*at, height / 2.0)], wish(at) - height / 2.0, 1.0, height + GAP);
        while let Some(last) = blocks.last() {
            if last.1 / last.2 + last.3 <= block.1 / block.2 {
                break;
            }
            let Some(mut last) = blocks.pop() else { break };
            let offset = last.3;
            last.0.extend(block.0.iter().map(|(at, y)| (*at, y + offset)));
            last.1 += block.1 - offset * block.2;
            last.2 += block.2;
            last.3 += block.3;
            block = last;
        }
        blocks.push(block);
    }
    for (members, sum, count, _) in blocks {
        for (at, offset) in members {
            if let Some(slot) = slots.get_mut(at) {
                slot.y = sum / count + offset;
            }
        }
    }
}

fn color(kind: ObjectKind) -> (&'static str, &'static str) {
    match kind {
        ObjectKind::Table | ObjectKind::PartitionedTable | ObjectKind::ForeignTable => {
            ("#e8f0fe", "#3367d6")
        }
        ObjectKind::View | ObjectKind::MaterializedView => ("#e6f4ea", "#188038"),
        ObjectKind::Function | ObjectKind::Procedure | ObjectKind::Aggregate => {
            ("#fef7e0", "#b06000")
        }
        ObjectKind::Type | ObjectKind::Domain => ("#f3e8fd", "#8430ce"),
        ObjectKind::Extension => ("#fce8e6", "#a50e0e"),
        _ => ("#f1f3f4", "#5f6368"),
    }
}

fn shown(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(LONGEST - 1).collect();
    short.push('…');
    short
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no way to write these.
            letter if letter.is_control() => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

fn paint(graph: &Graph, title: &str, slots: &[Slot], ways: &[Way], order: &[Vec<usize>]) -> String {
    let width_of = |at: usize| {
        let node = graph.nodes.get(at);
        let name = node.map_or(0, |node| shown(&node.name).chars().count());
        let kind = node.map_or(0, |node| node.kind.as_str().len());
        (name.max(kind) as f64 * LETTER + 24.0).max(90.0)
    };
    // The columns go from left to right, what needs nothing first.
    let (mut left, mut widths, mut x) = (Vec::new(), Vec::new(), MARGIN);
    for column in order {
        let nodes = column.iter().filter_map(|at| slots.get(*at)?.node);
        let width = nodes.map(width_of).fold(0.0, f64::max);
        left.push(x);
        widths.push(width);
        x += width + BETWEEN;
    }
    let letters = title.chars().count() as f64 * 9.0;
    let width = (x - BETWEEN + MARGIN).max(letters + 2.0 * MARGIN).max(560.0);
    let bottom = slots.iter().map(|slot| slot.y + slot.height / 2.0).fold(HEAD + MARGIN, f64::max);
    let height = bottom + MARGIN;
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
         <defs>\n\
         <marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\" fill=\"#80868b\"/></marker>\n\
         <marker id=\"circle\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"8\" \
         markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\" fill=\"#d93025\"/></marker>\n\
         </defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"32\" font-size=\"18\" font-weight=\"bold\" fill=\"#202124\">{}</text>\n\
         <text x=\"{MARGIN}\" y=\"52\" font-size=\"12\" fill=\"#5f6368\">an arrow leads to what is \
         needed; red: they need each other; dashed: a partition</text>\n",
        escape(title)
    );
    let left_of = |slot: &Slot| left.get(slot.column).copied().unwrap_or(0.0);
    let width_in = |slot: &Slot| widths.get(slot.column).copied().unwrap_or(0.0);
    let edges = |slot: &Slot| {
        let width = slot.node.map_or(width_in(slot), width_of);
        (left_of(slot), left_of(slot) + width)
    };
    for way in ways {
        let Some(link) = graph.links.get(way.link) else { continue };
        let Some(path) = path(way, slots, &edges) else { continue };
        let circular = graph.is_circular(link);
        let (stroke, tip) = if circular { ("#d93025", "circle") } else { ("#80868b", "tip") };
        let dashes = if link.partition { " stroke-dasharray=\"5 4\"" } else { "" };
        let via: Vec<String> = link.via.iter().map(|via| escape(via)).collect();
        let note = if via.is_empty() {
            String::new()
        } else {
            format!("<title>{}</title>", via.join(", "))
        };
        let _ = writeln!(
            out,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.4\"{dashes} \
             marker-end=\"url(#{tip})\">{note}</path>"
        );
    }
    for slot in slots {
        let Some(node) = slot.node.and_then(|at| graph.nodes.get(at)) else { continue };
        let (fill, stroke) = color(node.kind);
        let edge = if node.circle.is_some() { "#d93025" } else { stroke };
        let (x, right) = edges(slot);
        let y = slot.y - slot.height / 2.0;
        let _ = writeln!(
            out,
            "<g><title>{full}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" \
             height=\"{HEIGHT}\" rx=\"5\" fill=\"{fill}\" stroke=\"{edge}\"/>\
             <text x=\"{tx:.1}\" y=\"{ty:.1}\" font-size=\"13\" fill=\"#202124\">{name}</text>\
             <text x=\"{tx:.1}\" y=\"{ky:.1}\" font-size=\"10\" fill=\"{stroke}\">{kind}</text></g>",
            full = escape(&node.name),
            w = right - x,
            tx = x + 10.0,
            ty = y + 18.0,
            ky = y + 32.0,
            name = escape(&shown(&node.name)),
            kind = node.kind,
        );
    }
    out.push_str("</svg>\n");
    out
}

/// The line of a link, from the left side of what needs to the right side of what is needed; within
/// a column, around the right side.
fn path(way: &Way, slots: &[Slot], edges: &dyn Fn(&Slot) -> (f64, f64)) -> Option<String> {
    let first = slots.get(*way.slots.first()?)?;
    let last = slots.get(*way.slots.last()?)?;
    if first.column == last.column {
        let (from, to) = (edges(first).1, edges(last).1);
        // Each direction on a line of its own.
        let shift: f64 = if first.y < last.y { -6.0 } else { 6.0 };
        let far = from.max(to) + 28.0 + (first.y - last.y).abs().min(200.0) * 0.12 + shift.abs();
        return Some(format!(
            "M{from:.1} {:.1} C{far:.1} {:.1} {far:.1} {:.1} {to:.1} {:.1}",
            first.y + shift,
            first.y + shift,
            last.y + shift,
            last.y + shift
        ));
    }
    let mut out = format!("M{:.1} {:.1}", edges(first).0, first.y);
    let (mut x, mut y) = (edges(first).0, first.y);
    for at in way.slots.iter().skip(1) {
        let slot = slots.get(*at)?;
        let (left, right) = edges(slot);
        let bend = (x - right) / 2.0;
        out.push_str(&format!(
            " C{:.1} {y:.1} {:.1} {:.1} {right:.1} {:.1}",
            x - bend,
            right + bend,
            slot.y,
            slot.y
        ));
        if slot.node.is_none() {
            out.push_str(&format!(" L{left:.1} {:.1}", slot.y));
        }
        (x, y) = (left, slot.y);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::graph::{Link, Node};
    use super::*;

    #[test]
    fn no_box_covers_another_and_names_are_escaped() {
        let node = |name: &str| Node { kind: ObjectKind::Table, name: name.into(), circle: None };
        let link = |from, to| Link { from, to, via: BTreeSet::new(), partition: false };
        let graph = Graph {
            nodes: ["a<b&\"c\"", "b", "c", "d", "e", "f"].map(node).to_vec(),
            links: vec![
                link(1, 0),
                link(2, 0),
                link(3, 1),
                link(3, 2),
                link(4, 3),
                link(4, 0),
                link(5, 0),
            ],
        };
        let columns = columns(&graph);
        assert_eq!(columns, [0, 1, 1, 2, 3, 1]);
        let svg = draw(&graph, "t");
        assert!(svg.contains("a&lt;b&amp;&quot;c&quot;") && !svg.contains("a<b"));
        let number = |line: &str, name: &str| -> f64 {
            let after = line.split(&format!("{name}=\"")).nth(1).unwrap();
            after.split('"').next().unwrap().parse().unwrap()
        };
        let boxes: Vec<[f64; 4]> = svg
            .lines()
            .filter(|line| line.starts_with("<g>"))
            .map(|line| ["<rect x", " y", " width", " height"].map(|name| number(line, name)))
            .collect();
        assert_eq!(boxes.len(), 6);
        for (at, [x, y, w, h]) in boxes.iter().enumerate() {
            for [ox, oy, ow, oh] in &boxes[at + 1..] {
                let apart = x + w <= *ox || ox + ow <= *x || y + h <= *oy || oy + oh <= *y;
                assert!(apart, "{boxes:?}");
            }
        }
    }
}
