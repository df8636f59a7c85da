//go:build race

package vsock_test

const raceEnabled = true
