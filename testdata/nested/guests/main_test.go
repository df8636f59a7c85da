package guests

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/vole-vmm/vole/testdata/nested"
	"github.com/vole-vmm/vole/vmm/vmtest"
)

func TestMain(m *testing.M) {
	nested.RunIfInit() // before anything is built
	vmtest.Init()      // as PID 1 of a guest of TestVMTest
	samples, err := vmtestFiles()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	o := nested.Options{Assets: []string{
		nested.AssetVole, nested.AssetBusybox, nested.AssetPeer, nested.AssetDrivers,
		nested.KernelDefault, nested.KernelCloud61, nested.KernelGeneric61, nested.KernelCloud612,
	}, Files: slices.Concat(samples, buttonFiles(), diskFiles(), rootFiles(), moduleFiles(slices.Concat(netModules, vsockModules, consoleModules, agentModules, shareModules, execModules)...)), Modules: hostModules}
	path, err := buildTests("testee", "-cover")
	o.Files = append(o.Files, path)
	if err == nil && nested.CurrentSuite() != nested.SuiteTest {
		path, err = buildTests("posix")
		o.Files = append(o.Files, path)
	}
	if err == nil && !nested.Inside() && wantsGo() {
		files, berr := stageGo()
		o.Files, err = append(o.Files, files...), berr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if nested.CurrentSuite() != nested.SuiteTest {
		o.Assets = append(o.Assets, nested.AssetQEMU) // the peer
		if _, err := nested.Asset(nested.AssetFio); err == nil {
			o.Assets = append(o.Assets, nested.AssetFio)
		}
		o.Files = slices.Concat(o.Files, netTools(), gitTools())
		path, err := firecrackerPath()
		if err == nil && !nested.Inside() {
			err = buildFirecracker()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		o.Files = append(o.Files, path)
	}
	if nested.CurrentSuite() == nested.SuiteBench {
		o.Disk = "512M" // for BenchmarkDisk
		path, err := embedPath()
		if err == nil && !nested.Inside() {
			err = buildEmbed()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		o.Files = append(o.Files, path)
	}
	nested.Main(m, o)
}
