// Package gotest knows what a test binary, as "go test" runs it, leaves behind for its
// caller: coverage, profiles, the log that test caching needs, fuzz inputs. Where the
// binary runs in a guest whose changes vanish, the directories of these have to be
// writable.
//
// It reads command lines and looks at directories; it knows nothing of machines.
package gotest
