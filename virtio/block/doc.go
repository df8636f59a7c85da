// Package block is the virtio block device and the images behind it.
//
// An [Image] is any value that can be read at an offset and has a size; what
// more it can do (write, flush, discard, read into several buffers at once) it
// says by implementing the small interfaces beside it. [Open] makes one from a
// path: a raw file or block device as a [File], a qcow2 image, and either of
// them under a copy-on-write [Overlay]. [Memory] is an image in RAM. A
// [virtio.Limiter] bounds how fast an image is used.
//
// # Trust
//
// An image's bytes were written by a guest and are never looked at to decide
// what to open: the format is what the caller names, a backing file is never
// followed. The one look at an image, at its first four bytes when no format
// was named, can only refuse it.
//
// # Nothing lost
//
// A write that was followed by a successful Flush is on stable storage. After
// a failed Flush the host may have dropped what it could not write, so that
// every later Flush of that image fails too, until it is opened anew. A read
// that the host cannot serve in full is an error and never zeroes. A file that
// was cut off underneath is not made longer again: reads and changes behind its
// end fail, and so does every Flush. That stays so when the host makes it longer,
// with a hole where data was, and whatever size it is found to have then; it ends
// when the image is opened anew, or the guest told a size without what was lost.
//
// # What is left out
//
// Writing qcow2, backing files, and formats other than raw and qcow2.
//
// The device follows VIRTIO 1.2, section 5.2 (Block Device).
package block
