package guests

import (
	"testing"

	"github.com/vole-vmm/vole/testdata/nested"
)

func TestMain(m *testing.M) {
	nested.Main(m, nested.Options{
		Assets: []string{nested.AssetVole, nested.KernelDefault},
	})
}
