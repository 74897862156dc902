//! The slots of a cluster and the nodes that serve them: [`slot`], [`Layout`].

use std::collections::{BTreeMap, BTreeSet};

use ::redis::{Value, from_redis_value};

use super::address::Address;

/// Number of slots of every cluster.
pub(super) const SLOTS: usize = 16_384;

/// Returns the slot of a key name.
///
/// Names are binary, so one may contain braces by chance. The servers then hash only the text
/// between the first `{` and the next `}`, if there is any.
pub(super) fn slot(name: &[u8]) -> u16 {
    let tagged = || {
        let start = name.iter().position(|&byte| byte == b'{')? + 1;
        let length = name[start..].iter().position(|&byte| byte == b'}')?;
        (length > 0).then(|| &name[start..start + length])
    };
    crc16(tagged().unwrap_or(name)) % SLOTS as u16
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut crc, mut bit) = ((index as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// First slot, last slot and primary of each range of slots.
pub(super) type Ranges = BTreeSet<(u16, u16, Address)>;

/// The ids of nodes. A node keeps its id when its address changes, and the address of one that is
/// gone may be given to a node of another cluster.
pub(super) type NodeIds = BTreeMap<Address, String>;

/// The layout of a cluster as one node tells it: the primary of each range of slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) ranges: Ranges,
    pub(super) replicas: BTreeSet<Address>,
    /// Of primaries and replicas.
    pub(super) ids: NodeIds,
}

impl Layout {
    /// Parses the reply to `CLUSTER SLOTS` of the node `from`.
    pub(super) fn parse(reply: Value, from: &Address) -> Option<Layout> {
        let mut layout = Layout::default();
        for range in list(reply)? {
            let mut fields = list(range)?.into_iter();
            let (first, last) = (number(fields.next()?)?, number(fields.next()?)?);
            if usize::from(last) >= SLOTS || first > last {
                return None;
            }
            let mut node = |field: Value| {
                let (address, id) = node(field, from)?;
                layout.ids.extend(id.map(|id| (address.clone(), id)));
                Some(address)
            };
            let primary = node(fields.next()?)?;
            let replicas: Vec<_> = fields.filter_map(node).collect();
            layout.ranges.insert((first, last, primary));
            layout.replicas.extend(replicas);
        }
        Some(layout)
    }

    /// Returns the number of slots that a node serves.
    pub(super) fn covered(&self) -> usize {
        self.ranges.iter().map(|(first, last, _)| usize::from(last - first) + 1).sum()
    }

    /// Returns the ids of the primaries.
    pub(super) fn primary_ids(&self) -> NodeIds {
        let id = |node: Address| Some((node.clone(), self.ids.get(&node)?.clone()));
        self.primaries().into_iter().filter_map(id).collect()
    }

    /// True if a node with this id is in it.
    pub(super) fn has_node(&self, id: &str) -> bool {
        self.ids.values().any(|known| known == id)
    }

    /// Returns the primaries.
    pub(super) fn primaries(&self) -> BTreeSet<Address> {
        self.ranges.iter().map(|(_, _, node)| node.clone()).collect()
    }
}

fn list(value: Value) -> Option<Vec<Value>> {
    if let Value::Array(values) = value { Some(values) } else { None }
}

fn number(value: Value) -> Option<u16> {
    if let Value::Int(number) = value { number.try_into().ok() } else { None }
}

/// Parses the address and id of a node: host, port, id, and more that newer servers add.
fn node(value: Value, from: &Address) -> Option<(Address, Option<String>)> {
    let mut fields = list(value)?.into_iter();
    let host: Option<String> = from_redis_value(fields.next()?).ok()?;
    let address = Address::announced(&host.unwrap_or_default(), number(fields.next()?)?, from);
    let id = fields.next().and_then(|id| from_redis_value::<String>(id).ok()).filter(|id| !id.is_empty());
    Some((address, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_that_of_the_servers() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
        // The part in braces alone is hashed, if there is one and it is not empty.
        assert_eq!(slot(b"a{foo}b{c}"), slot(b"foo"));
        assert_eq!(slot(b"}{foo}"), slot(b"foo"));
        for whole in [&b"a{}foo"[..], b"{foo", b"foo}", b"{}{foo}"] {
            assert_eq!(slot(whole), crc16(whole) % 16_384);
        }
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn at(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(Vec::new())])
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    #[test]
    fn a_layout_is_read_with_the_host_of_the_node_that_was_asked_where_it_names_none() {
        let from = Address::new("seed", 7000);
        let reply = Value::Array(vec![
            range(0, 99, vec![at(bulk("a"), 1), at(bulk("b"), 2)]),
            range(100, 16_383, vec![at(Value::Nil, 3)]),
        ]);
        let layout = Layout::parse(reply, &from).unwrap();
        assert_eq!(layout.covered(), SLOTS);
        let primaries: Vec<_> = layout.primaries().into_iter().collect();
        assert_eq!(primaries, [Address::new("a", 1), Address::new("seed", 3)]);
        assert!(layout.replicas.contains(&Address::new("b", 2)));
        let (ids, primaries) = (&layout.ids, layout.primary_ids());
        assert!(ids.len() == 3 && ids.values().all(|id| id == "id"), "{ids:?}");
        assert!(primaries.len() == 2 && !primaries.contains_key(&Address::new("b", 2)), "{primaries:?}");
    }

    #[test]
    fn a_reply_that_is_no_layout_is_refused() {
        let from = Address::new("seed", 7000);
        let node = || vec![at(bulk("a"), 1)];
        for bad in [range(0, 16_384, node()), range(5, 4, node()), range(-1, 4, node()), range(0, 4, vec![])]
        {
            assert_eq!(Layout::parse(Value::Array(vec![bad]), &from), None);
        }
        assert_eq!(Layout::parse(Value::Okay, &from), None);
    }
}
