// Package guests holds the tests that boot guests. They run on /dev/kvm where
// it boots a stock kernel, and in the emulated host of package nested elsewhere.
package guests
