"""Pure decisions: bytes, numbers and times in, values out. Nothing here touches the machine."""
