// Package testee is a package whose tests leave all that "go test" wants to have back:
// coverage, profiles, a log, a failing fuzz input. Package guests runs them in guests, by
// `vole exec`.
package testee

// Sum adds numbers, and has a branch that a test may leave out.
func Sum(list ...int) (n int) {
	for _, x := range list {
		if x < 0 {
			x = -x
		}
		n += x
	}
	return n
}
