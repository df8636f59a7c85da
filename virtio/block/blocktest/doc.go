// Package blocktest has images for testing whoever uses one: [Faulty] fails,
// cuts short or holds back what a test names, [Hasty] also answers at once, at
// times.
package blocktest
