"""x"""
class MethodConformance: pass
