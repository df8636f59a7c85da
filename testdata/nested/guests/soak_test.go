package guests

import (
	"fmt"
	"testing"

	"github.com/vole-vmm/vole/testdata/nested"
)

// TestSoakBoots boots the pairs of the matrix again and again.
func TestSoakBoots(t *testing.T) {
	nested.RequireSuite(t, nested.SuiteSoak)
	for round := range 20 {
		for _, c := range pairs {
			t.Run(fmt.Sprintf("%d/%v", round, c), func(t *testing.T) { testChoice(t, c) })
		}
	}
}
