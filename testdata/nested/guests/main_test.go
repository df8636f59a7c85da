package guests

import (
	"testing"

	"github.com/vole-vmm/vole/testdata/nested"
)

func TestMain(m *testing.M) {
	o := nested.Options{Assets: []string{
		nested.AssetVole, nested.AssetBusybox,
		nested.KernelDefault, nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612,
	}}
	if nested.CurrentSuite() != nested.SuiteTest {
		o.Assets = append(o.Assets, nested.AssetQEMU) // the peer
	}
	nested.Main(m, o)
}
