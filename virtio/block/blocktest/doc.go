// Package blocktest has images for testing whoever uses one: [Faulty] fails,
// cuts short or holds back what a test names.
package blocktest
