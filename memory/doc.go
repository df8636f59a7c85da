// Package memory holds a guest's physical memory: which guest-physical ranges
// are RAM, where the host has them mapped, and checked access to their bytes.
//
// RAM lies from 0 up to [LowTop] and, what does not fit there, from
// [HighStart] up; the hole between them belongs to devices. The package knows
// nothing of KVM, of virtio or of what the bytes mean.
//
// # Hostile guests
//
// Guest memory is shared with a running guest: two reads of the same byte may
// differ. Callers copy once, then check, then use the copy. Every accessor
// here refuses a range that is not wholly RAM and cannot be made to wrap.
package memory
