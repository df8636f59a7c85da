package nested

import (
	"os"
	"testing"
)

// Suite is the size of a test run; VOLE_SUITE sets it and the Makefile sets that.
type Suite string

// The suites. Each holds what the one before it holds.
const (
	SuiteTest   Suite = "test"   // what CI runs
	SuiteMatrix Suite = "matrix" // every combination
	SuiteSoak   Suite = "soak"   // long loops
	SuiteBench  Suite = "bench"  // benchmarks, on what SuiteTest runs
)

// rank orders the suites.
var rank = map[Suite]int{SuiteTest: 0, SuiteBench: 0, SuiteMatrix: 1, SuiteSoak: 2}

// CurrentSuite is the suite that runs; SuiteTest unless VOLE_SUITE names another.
func CurrentSuite() Suite {
	s := Suite(os.Getenv("VOLE_SUITE"))
	if _, ok := rank[s]; !ok {
		return SuiteTest
	}
	return s
}

// RequireSuite skips a test that belongs to a larger suite than the one that
// runs. The reason's wording is what excuses the skip in CI.
func RequireSuite(tb testing.TB, s Suite) {
	tb.Helper()
	if rank[CurrentSuite()] < rank[s] {
		tb.Skip("only in make " + string(s))
	}
}
