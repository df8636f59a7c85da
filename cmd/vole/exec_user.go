package main

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/vole-vmm/vole/guest/remote"
	"github.com/vole-vmm/vole/vmm/harness"
)

// execUser is who runs the command: the user of this process, or who is named.
func execUser(name string) (*remote.User, error) {
	if name == "" {
		return harness.Caller()
	}
	uid, gid, both := strings.Cut(name, ":")
	if uid == nobodyAtAll || gid == nobodyAtAll {
		return nil, fmt.Errorf("%s is the number of nobody", nobodyAtAll)
	}
	if n, err := strconv.ParseUint(uid, 10, 32); err == nil {
		u := &remote.User{UID: uint32(n), GID: uint32(n)}
		if both {
			g, err := strconv.ParseUint(gid, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%q is not UID:GID", name)
			}
			u.GID = uint32(g)
			return u, nil
		}
		if found, err := user.LookupId(uid); err == nil {
			return numbers(found)
		}
		return u, nil
	}
	found, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("%q is no user of this machine", name)
	}
	return numbers(found)
}

// nobodyAtAll stands in Linux for "as it is": nobody can have it.
const nobodyAtAll = "4294967295"

// numbers are those of a user, with all of its groups.
func numbers(u *user.User) (*remote.User, error) {
	id := func(s string) (uint32, error) {
		n, err := strconv.ParseUint(s, 10, 32)
		return uint32(n), err
	}
	uid, err := id(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := id(u.Gid)
	if err != nil {
		return nil, err
	}
	r := &remote.User{UID: uid, GID: gid}
	groups, err := u.GroupIds()
	if err != nil {
		return r, nil
	}
	for _, s := range groups {
		g, err := id(s)
		if err != nil {
			return nil, err
		}
		r.Groups = append(r.Groups, g)
	}
	return r, nil
}
