package guest

import (
	"encoding/json"
	"fmt"

	"github.com/vole-vmm/vole/boot/initramfs"
	"github.com/vole-vmm/vole/guest/wire"
)

// AgentArchive returns an initramfs in which /init is the executable exe, as in
// [Archive], and [Main] becomes the agent that config describes. The modules that
// config names are not in it: they come in an archive of their own, before or behind
// this one. The config's secret is in it, so it is to be kept nowhere.
//
// Unlike Archive's, the executable may need an interpreter and shared libraries, as
// a test with the race detector does: they are looked for as this machine's own
// loader does, with this process's LD_LIBRARY_PATH, and packed. ErrLibrary names what is missing.
func AgentArchive(exe string, config wire.Config) (*Initramfs, error) {
	i := new(Initramfs)
	if err := i.addAgent(exe, config); err != nil {
		_ = i.Close()
		return nil, fmt.Errorf("guest: %w", err)
	}
	return i, nil
}

func (i *Initramfs) addAgent(exe string, config wire.Config) error {
	var a initramfs.Archive
	if err := i.addInit(&a, exe, readLoadable); err != nil {
		return err
	}
	if err := i.addLibraries(&a, exe); err != nil {
		return fmt.Errorf("%s: %w", exe, err)
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := a.Bytes(wire.ConfigFile, 0o400, text); err != nil {
		return err
	}
	i.Image = a.Image()
	return nil
}
