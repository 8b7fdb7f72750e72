//! Cycles in the graph of files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::names::Edge;

/// Files that use each other in turn; the last one uses the first.
pub(super) type Cycle<'a> = Vec<&'a str>;

/// Which file uses which, and by what.
pub(super) struct Graph<'a> {
    links: BTreeMap<&'a str, BTreeMap<&'a str, Vec<&'a Edge>>>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(edges: &'a [Edge]) -> Self {
        let mut links: BTreeMap<&str, BTreeMap<&str, Vec<&Edge>>> = BTreeMap::new();
        for edge in edges {
            links.entry(&edge.from).or_default().entry(&edge.to).or_default().push(edge);
        }
        Self { links }
    }

    /// For each edge that lies on a cycle the shortest such cycle, shortest first. So every edge that keeps files in a
    /// cycle is in one of them, while the number of all cycles may be astronomic.
    pub(super) fn cycles(&self) -> Vec<Cycle<'a>> {
        let mut found = BTreeSet::new();
        for (&from, targets) in &self.links {
            for &to in targets.keys() {
                if let Some(mut cycle) = self.shortest_way(to, from) {
                    // One cycle is found from each of its edges: let it start with the same file each time.
                    let first = cycle.iter().enumerate().min_by_key(|it| it.1).map_or(0, |it| it.0);
                    cycle.rotate_left(first);
                    found.insert((cycle.len(), cycle));
                }
            }
        }
        found.into_iter().map(|it| it.1).collect()
    }

    /// The files on the shortest way, both ends included.
    fn shortest_way(&self, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
        let mut waiting = VecDeque::from([vec![from]]);
        let mut seen = BTreeSet::from([from]);
        while let Some(way) = waiting.pop_front() {
            let &last = way.last()?;
            if last == to {
                return Some(way);
            }
            for &next in self.links.get(last).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(next) {
                    waiting.push_back([&way[..], &[next]].concat());
                }
            }
        }
        None
    }

    /// The uses that a cycle consists of, each with all the lines in one file that use the next one.
    pub(super) fn uses(&self, cycle: &Cycle<'a>) -> Vec<&[&'a Edge]> {
        let next = cycle.iter().cycle().skip(1);
        cycle.iter().zip(next).map(|(from, to)| self.links[from][to].as_slice()).collect()
    }
}

/// Cycles that share files, put together: each group is a strongly connected component of the graph.
pub(super) fn components(cycles: Vec<Cycle<'_>>) -> Vec<Vec<Cycle<'_>>> {
    let mut groups: Vec<(BTreeSet<&str>, Vec<Cycle<'_>>)> = Vec::new();
    for cycle in cycles {
        let mut files: BTreeSet<&str> = cycle.iter().copied().collect();
        let (joined, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(|it| !it.0.is_disjoint(&files));
        groups = apart;
        let mut inside = Vec::new();
        for (more, cycles) in joined {
            files.extend(more);
            inside.extend(cycles);
        }
        inside.push(cycle);
        groups.push((files, inside));
    }
    let mut components: Vec<Vec<Cycle<'_>>> = groups.into_iter().map(|it| it.1).collect();
    for cycles in &mut components {
        cycles.sort_by_key(Vec::len);
    }
    components.sort_by_key(|it| it[0].len());
    components
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(text: &str) -> Vec<Edge> {
        let edge = |(line, pair): (usize, &str)| {
            let (from, to) = pair.split_once('>').unwrap();
            Edge { from: from.to_owned(), to: to.to_owned(), line, name: String::new() }
        };
        text.split(' ').enumerate().map(edge).collect()
    }

    #[test]
    fn every_component_is_found_and_the_shortest_cycle_comes_first() {
        let edges = edges("a>b b>c c>a x>y y>x c>d p>q q>r r>p q>p r>x");
        let cycles = Graph::new(&edges).cycles();
        assert_eq!(cycles, [vec!["p", "q"], vec!["x", "y"], vec!["a", "b", "c"], vec!["p", "q", "r"]]);
        let components = components(cycles);
        let files: Vec<Vec<String>> =
            components.iter().map(|it| it.iter().map(|cycle| cycle.concat()).collect()).collect();
        assert_eq!(files, [vec!["xy"], vec!["pq", "pqr"], vec!["abc"]]);
    }

    #[test]
    fn no_cycle_is_longer_than_it_must_be() {
        let edges = edges("a>b b>m m>a b>n n>o o>a n>b o>n a>o");
        assert_eq!(Graph::new(&edges).cycles(), [vec!["a", "o"], vec!["b", "n"], vec!["n", "o"], vec!["a", "b", "m"]]);
    }

    #[test]
    fn what_is_used_twice_is_no_cycle() {
        assert!(Graph::new(&edges("a>b a>c b>d c>d")).cycles().is_empty());
    }
}
