//! Doubly linked lists whose nodes live in a vector: [`List`].

/// The index that stands for no node.
pub(super) const NONE: u32 = u32::MAX;

/// The neighbours of a node in its list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    before: u32,
    behind: u32,
}

impl Links {
    pub(super) const NONE: Links = Links { before: NONE, behind: NONE };
}

/// A node of a [`List`]. It can be in at most one list at a time.
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// A list of nodes, identified by their index in a vector. Every call must pass the same vector.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl List {
    pub(super) const EMPTY: List = List { first: NONE, last: NONE };

    pub(super) fn is_empty(self) -> bool {
        self.first == NONE
    }

    pub(super) fn push<N: Linked>(&mut self, nodes: &mut [N], node: u32) {
        *nodes[node as usize].links() = Links { before: self.last, behind: NONE };
        self.set_behind(nodes, self.last, node);
        self.last = node;
    }

    pub(super) fn take<N: Linked>(&mut self, nodes: &mut [N], node: u32) {
        let Links { before, behind } = *nodes[node as usize].links();
        self.set_behind(nodes, before, behind);
        self.set_before(nodes, behind, before);
    }

    /// Updates the neighbours of a node of the list after it has moved to `node`.
    pub(super) fn moved<N: Linked>(&mut self, nodes: &mut [N], node: u32) {
        let Links { before, behind } = *nodes[node as usize].links();
        self.set_behind(nodes, before, node);
        self.set_before(nodes, behind, node);
    }

    fn set_behind<N: Linked>(&mut self, nodes: &mut [N], node: u32, behind: u32) {
        match node {
            NONE => self.first = behind,
            node => nodes[node as usize].links().behind = behind,
        }
    }

    fn set_before<N: Linked>(&mut self, nodes: &mut [N], node: u32, before: u32) {
        match node {
            NONE => self.last = before,
            node => nodes[node as usize].links().before = before,
        }
    }
}

#[cfg(test)]
impl List {
    /// Returns the nodes in order, after checking that both directions agree.
    pub(super) fn nodes<N: Linked>(self, nodes: &mut [N]) -> Vec<u32> {
        let mut found = Vec::new();
        let (mut node, mut before) = (self.first, NONE);
        while node != NONE {
            found.push(node);
            let links = *nodes[node as usize].links();
            assert_eq!(links.before, before);
            (before, node) = (node, links.behind);
        }
        assert_eq!(self.last, before);
        found
    }
}
