// Package fs is the virtio file system device, virtiofs: the guest's kernel sends
// the FUSE requests that it would send to a process of its own, and the device has
// a [FileSystem] answer them.
//
// # Queues
//
// Queue 0, hiprio, carries FORGET, BATCH_FORGET and INTERRUPT and has a goroutine
// of its own, which waits for no other request. The others carry everything else.
// Each has a crew of workers: one takes requests while the others carry them out,
// so that a slow disk under one request holds up no other. A lock that has to be
// waited for leaves the crew: such requests have goroutines of their own, a
// bounded number, and are cancelled by INTERRUPT, DESTROY and a reset. So does a
// SYNCFS, which waits for the disks ([Syncing]); with more of them than there are
// goroutines for, each takes a worker.
//
// # Sessions
//
// INIT begins a session, DESTROY or a reset of the device ends it: then requests
// that wait are cancelled, those that are in flight are waited for, and the file
// system forgets every inode and handle ([FileSystem.Reset]). Outside of a session
// every request fails with EIO. A guest that mounts again begins anew.
//
// # Trust
//
// The parser is that of github.com/hanwen/go-fuse, which keeps aliases of what it
// is given, logs what it does not like, and believes some sizes. So a request is
// copied out of guest memory once, and looked at here: what is too short, too
// long, unknown, or has no room for its reply, never gets there. Two things are
// not copied. The data of a WRITE are handed on as slices of guest memory, for
// pwritev; the data of a READ are read straight into guest memory. What the
// library or the file system panics of ends one request with EIO.
//
// A request carries 1 MiB of data at most, other requests and replies 64 KiB, and
// buffers are pooled, so a guest decides on no allocation.
//
// # Left out
//
// DAX (a window of shared memory), notifications to the guest, and requests in
// big-endian. A pause waits for a lock, or the disks, that a request waits for.
//
// The device follows VIRTIO 1.2, section 5.11 (File System Device), and FUSE's
// protocol 7, as Linux has it in include/uapi/linux/fuse.h.
package fs
