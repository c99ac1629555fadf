//! However long a peer claims that something is: decoding it takes no more memory than its limit.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use accel_p2p::membership::{Certificate, Invite, SwarmMembership};
use accel_p2p::wire::{
    ControlReply, ControlRequest, Gossip, JoinResponse, ReplicaReply, ReplicaRequest, limit,
    read_message, tag,
};
use futures::executor::block_on;
use futures::io::Cursor;
use proptest::prelude::*;

/// Remembers the largest piece of memory that this thread asked for.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `System.alloc` with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// The largest piece of memory that `work` asks for.
fn largest_allocation(work: impl FnOnce()) -> usize {
    LARGEST.set(0);
    work();
    LARGEST.get()
}

fn framed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn decode_as_everything(bytes: &[u8]) {
    let framed = framed(bytes);
    let _ = block_on(read_message::<ControlRequest>(&mut Cursor::new(&framed)));
    let _ = block_on(read_message::<ControlReply>(&mut Cursor::new(&framed)));
    let _ = block_on(read_message::<JoinResponse>(&mut Cursor::new(&framed)));
    let _ = block_on(read_message::<ReplicaRequest>(&mut Cursor::new(&framed)));
    let _ = block_on(read_message::<ReplicaReply>(&mut Cursor::new(&framed)));
    let _ = block_on(read_message::<ControlRequest>(&mut Cursor::new(bytes)));
    let _ = Gossip::open(bytes, 0);
    let _ = Certificate::from_bytes(bytes);
    let _ = SwarmMembership::from_bytes(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = text.parse::<Invite>();
    }
}

/// A message's first bytes, and then a length of more than any memory.
fn endless(prefix: &[u8]) -> Vec<u8> {
    let mut bytes = prefix.to_vec();
    bytes.push(253);
    bytes.extend_from_slice(&u64::MAX.to_le_bytes());
    bytes.resize(bytes.len() + 64, 1);
    bytes
}

#[test]
fn a_length_beyond_all_memory_takes_none() {
    let cases = [
        endless(&[tag::GOSSIP_ENVELOPE]),
        endless(&[tag::CONTROL_REPLY, 4]),
        endless(&[tag::CONTROL_REPLY, 2, 0, 0, 0]),
        endless(&[tag::JOIN_RESPONSE, 2]),
        endless(&[tag::REPLICA_REQUEST, 2]),
        endless(&[tag::REPLICA_REQUEST, 3, 0]),
        endless(&[tag::REPLICA_REPLY, 3, 0, 1]),
        endless(&[tag::REPLICA_REPLY, 5]),
        endless(&[tag::CERTIFICATE]),
        endless(&[]),
        u32::MAX.to_le_bytes().to_vec(),
    ];
    for bytes in cases {
        let largest = largest_allocation(|| decode_as_everything(&bytes));
        assert!(largest < 4 * 1024, "{largest} bytes for {bytes:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_take_no_more_than_the_largest_limit(
        tag in 0..0x54u8, bytes in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let bytes = [&[tag], bytes.as_slice()].concat();
        let largest = largest_allocation(|| decode_as_everything(&bytes));
        prop_assert!(largest <= limit::CONTROL_REQUEST, "{} bytes", largest);
    }
}
